"""How hypothesis runs here: how long an example takes says something of the machine only."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "patient",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")
