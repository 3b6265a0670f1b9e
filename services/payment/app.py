"""The payment service: `meshrpc run services.payment.app:service`."""

import meshrpc
from services.payment.ledger import Ledger
from services.payment.payments import Payments
from services.payment.v1 import payment_pb2_grpc

service = meshrpc.Service("payment", version="v1")
ledger = Ledger(service.settings.state_dir / "payments.db")
payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(ledger, version="v1"), service)

if __name__ == "__main__":
    service.run()
