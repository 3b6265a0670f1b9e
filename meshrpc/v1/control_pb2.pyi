from meshrpc.v1 import policy_pb2 as _policy_pb2
from meshrpc.v1 import registry_pb2 as _registry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubscribeRequest(_message.Message):
    __slots__ = ("hello", "interest", "acknowledgement", "answer", "quota")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INTEREST_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    interest: Interest
    acknowledgement: Acknowledgement
    answer: Answer
    quota: QuotaReport
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., interest: _Optional[_Union[Interest, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., quota: _Optional[_Union[QuotaReport, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("namespace", "service", "instance", "version", "pid", "library", "accepts_differences")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    service: str
    instance: str
    version: str
    pid: int
    library: str
    accepts_differences: bool
    def __init__(self, namespace: _Optional[str] = ..., service: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., library: _Optional[str] = ..., accepts_differences: _Optional[bool] = ...) -> None: ...

class Interest(_message.Message):
    __slots__ = ("policies", "instances", "epoch", "held")
    class HeldEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedScalarFieldContainer[str]
    instances: _containers.RepeatedScalarFieldContainer[str]
    epoch: str
    held: _containers.ScalarMap[str, int]
    def __init__(self, policies: _Optional[_Iterable[str]] = ..., instances: _Optional[_Iterable[str]] = ..., epoch: _Optional[str] = ..., held: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("nonce", "revision", "policies", "instances", "epoch", "questions", "quota")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    revision: int
    policies: _containers.RepeatedCompositeFieldContainer[_policy_pb2.PolicyDocument]
    instances: _containers.RepeatedCompositeFieldContainer[InstanceSet]
    epoch: str
    questions: _containers.RepeatedCompositeFieldContainer[Question]
    quota: QuotaGrant
    def __init__(self, nonce: _Optional[str] = ..., revision: _Optional[int] = ..., policies: _Optional[_Iterable[_Union[_policy_pb2.PolicyDocument, _Mapping]]] = ..., instances: _Optional[_Iterable[_Union[InstanceSet, _Mapping]]] = ..., epoch: _Optional[str] = ..., questions: _Optional[_Iterable[_Union[Question, _Mapping]]] = ..., quota: _Optional[_Union[QuotaGrant, _Mapping]] = ...) -> None: ...

class InstanceSet(_message.Message):
    __slots__ = ("service", "version", "instances", "base", "removed", "departed", "recovering")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    DEPARTED_FIELD_NUMBER: _ClassVar[int]
    RECOVERING_FIELD_NUMBER: _ClassVar[int]
    service: str
    version: int
    instances: _containers.RepeatedCompositeFieldContainer[_registry_pb2.Instance]
    base: int
    removed: _containers.RepeatedScalarFieldContainer[str]
    departed: _containers.RepeatedScalarFieldContainer[str]
    recovering: bool
    def __init__(self, service: _Optional[str] = ..., version: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[_registry_pb2.Instance, _Mapping]]] = ..., base: _Optional[int] = ..., removed: _Optional[_Iterable[str]] = ..., departed: _Optional[_Iterable[str]] = ..., recovering: _Optional[bool] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("id", "service")
    ID_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    id: str
    service: str
    def __init__(self, id: _Optional[str] = ..., service: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "view")
    ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    id: str
    view: ViewResponse
    def __init__(self, id: _Optional[str] = ..., view: _Optional[_Union[ViewResponse, _Mapping]] = ...) -> None: ...

class QuotaReport(_message.Message):
    __slots__ = ("grant", "claims")
    class Claim(_message.Message):
        __slots__ = ("limit", "key", "demand", "share", "is_granted")
        LIMIT_FIELD_NUMBER: _ClassVar[int]
        KEY_FIELD_NUMBER: _ClassVar[int]
        DEMAND_FIELD_NUMBER: _ClassVar[int]
        SHARE_FIELD_NUMBER: _ClassVar[int]
        IS_GRANTED_FIELD_NUMBER: _ClassVar[int]
        limit: str
        key: bytes
        demand: int
        share: int
        is_granted: bool
        def __init__(self, limit: _Optional[str] = ..., key: _Optional[bytes] = ..., demand: _Optional[int] = ..., share: _Optional[int] = ..., is_granted: _Optional[bool] = ...) -> None: ...
    GRANT_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    grant: int
    claims: _containers.RepeatedCompositeFieldContainer[QuotaReport.Claim]
    def __init__(self, grant: _Optional[int] = ..., claims: _Optional[_Iterable[_Union[QuotaReport.Claim, _Mapping]]] = ...) -> None: ...

class QuotaGrant(_message.Message):
    __slots__ = ("number", "shares")
    class Share(_message.Message):
        __slots__ = ("limit", "key", "share", "forget")
        LIMIT_FIELD_NUMBER: _ClassVar[int]
        KEY_FIELD_NUMBER: _ClassVar[int]
        SHARE_FIELD_NUMBER: _ClassVar[int]
        FORGET_FIELD_NUMBER: _ClassVar[int]
        limit: str
        key: bytes
        share: int
        forget: bool
        def __init__(self, limit: _Optional[str] = ..., key: _Optional[bytes] = ..., share: _Optional[int] = ..., forget: _Optional[bool] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    number: int
    shares: _containers.RepeatedCompositeFieldContainer[QuotaGrant.Share]
    def __init__(self, number: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[QuotaGrant.Share, _Mapping]]] = ...) -> None: ...

class ViewRequest(_message.Message):
    __slots__ = ("namespace", "instance", "service")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    instance: str
    service: str
    def __init__(self, namespace: _Optional[str] = ..., instance: _Optional[str] = ..., service: _Optional[str] = ...) -> None: ...

class ViewResponse(_message.Message):
    __slots__ = ("is_called", "instances", "away", "age_seconds", "skipped")
    IS_CALLED_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    is_called: bool
    instances: _containers.RepeatedCompositeFieldContainer[SeenInstance]
    away: str
    age_seconds: float
    skipped: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, is_called: _Optional[bool] = ..., instances: _Optional[_Iterable[_Union[SeenInstance, _Mapping]]] = ..., away: _Optional[str] = ..., age_seconds: _Optional[float] = ..., skipped: _Optional[_Iterable[str]] = ...) -> None: ...

class SeenInstance(_message.Message):
    __slots__ = ("instance", "state", "connectivity", "pending")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONNECTIVITY_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    instance: _registry_pb2.Instance
    state: str
    connectivity: str
    pending: int
    def __init__(self, instance: _Optional[_Union[_registry_pb2.Instance, _Mapping]] = ..., state: _Optional[str] = ..., connectivity: _Optional[str] = ..., pending: _Optional[int] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("nonce", "refused", "ignored")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    refused: _containers.RepeatedCompositeFieldContainer[Refusal]
    ignored: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nonce: _Optional[str] = ..., refused: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., ignored: _Optional[_Iterable[str]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("kind", "name", "reason")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Refusal.Kind]
        KIND_POLICY: _ClassVar[Refusal.Kind]
        KIND_INSTANCES: _ClassVar[Refusal.Kind]
    KIND_UNSPECIFIED: Refusal.Kind
    KIND_POLICY: Refusal.Kind
    KIND_INSTANCES: Refusal.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: Refusal.Kind
    name: str
    reason: str
    def __init__(self, kind: _Optional[_Union[Refusal.Kind, str]] = ..., name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("namespace",)
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    def __init__(self, namespace: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("revision", "processes")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    processes: _containers.RepeatedCompositeFieldContainer[ProcessStatus]
    def __init__(self, revision: _Optional[int] = ..., processes: _Optional[_Iterable[_Union[ProcessStatus, _Mapping]]] = ...) -> None: ...

class ProcessStatus(_message.Message):
    __slots__ = ("service", "instance", "version", "revision", "state", "reason", "age_seconds", "pid", "library")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ProcessStatus.State]
        STATE_SYNCED: _ClassVar[ProcessStatus.State]
        STATE_PENDING: _ClassVar[ProcessStatus.State]
        STATE_REFUSED: _ClassVar[ProcessStatus.State]
    STATE_UNSPECIFIED: ProcessStatus.State
    STATE_SYNCED: ProcessStatus.State
    STATE_PENDING: ProcessStatus.State
    STATE_REFUSED: ProcessStatus.State
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    service: str
    instance: str
    version: str
    revision: int
    state: ProcessStatus.State
    reason: str
    age_seconds: float
    pid: int
    library: str
    def __init__(self, service: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ..., revision: _Optional[int] = ..., state: _Optional[_Union[ProcessStatus.State, str]] = ..., reason: _Optional[str] = ..., age_seconds: _Optional[float] = ..., pid: _Optional[int] = ..., library: _Optional[str] = ...) -> None: ...
