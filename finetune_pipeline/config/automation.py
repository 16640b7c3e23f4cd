"""`automation`: when Dagster starts a retraining."""

from __future__ import annotations

from datetime import datetime

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from finetune_pipeline.config.section import Section

CRON_NAMES = ("@hourly", "@daily", "@weekly", "@monthly", "@yearly")


class Automation(Section):
    """Schedule and alarms that start a retraining."""

    schedule: str = Field(
        "0 6 * * 1",
        description="Cron line of the regular retraining, in UTC: minute, hour, day of the month, month, day of the "
        "week; or @hourly, @daily, @weekly, @monthly, @yearly. Off until switched on in Dagster.",
    )
    cooldown_hours: float = Field(24.0, ge=0, description="Minimum time between two retrainings started by alarms.")

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, line: str) -> str:
        """A cron line that Dagster accepts; an invalid one would stop every task of the deployment from loading."""
        if line in CRON_NAMES:
            return line
        if len(line.split()) != 5:
            raise ValueError(f"a cron line has five fields, as in `0 6 * * 1`; or use one of {', '.join(CRON_NAMES)}")
        try:
            CronSim(line, datetime.min)
        except CronSimError as error:
            raise ValueError(f"{error}: no such time; Mondays at six are `0 6 * * 1`") from None
        return line
