"""The study of a search, kept by Optuna in a journal: what was tried, what was found, and what to try next.

    study = Study(folder / "trials.jsonl", search, seed)
    while (trial := study.ask()) is not None:
        study.tell(trial, record)
    study.records            # every finished trial, also those of a run that was killed

Values are proposed by a tree-structured Parzen estimator (Bergstra et al., 2011). Its seed is made of the declared one
and the number of the trial, so that a resumed search proposes what an uninterrupted one would, after the same trials.
A trial that ended with its process is begun again, once; after the second time it has failed, because one whose
settings end the process must not end every run. A trial of a canceled run is begun again as often as that happens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_pipeline.config import Search
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.train.search.choice import cost
from finetune_pipeline.train.search.space import Values, combinations, decoded, encoded, suggest
from finetune_pipeline.train.search.spec import TrialRecord

RECORD, RUN, AGAIN, INTERRUPTED = "record", "mlflow_run_id", "again", "interrupted"
MAX_REPEATED = 20  # proposals in a row that were tried before
STARTUP_TRIALS = 10  # at random, before the estimator proposes; at most half of all
PRUNED_AFTER = 4  # trials that are not pruned, as there is little to compare with
MIN_FOR_IMPORTANCE = 8  # completed trials
ENDED_TWICE = "the process of the search ended twice in this trial (with too little memory, it is killed)"


class Study:
    """`path`: the journal, which one process at a time may use. `first`: values to try first."""

    def __init__(self, path: Path, search: Search, seed: int, first: Values | None = None) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _repair(path)
        self._optuna, self._search, self._seed = optuna, search, seed
        with writing(path):
            storage = JournalStorage(JournalFileBackend(str(path)))
            self._study = optuna.create_study(
                storage=storage,
                study_name="search",
                direction="minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )
        self._begin_again()
        planned = combinations(search.parameters, search.trials)
        self.trials = len(planned) or search.trials
        for values in planned or ([first] if first else []):
            fixed = {name: encoded(name, value) for name, value in values.items()}
            self._study.enqueue_trial(fixed, skip_if_exists=True)

    @property
    def records(self) -> list[TrialRecord]:
        """The finished trials, by number."""
        found = (TrialRecord.from_json(trial.user_attrs[RECORD]) for trial in self._finished())
        return sorted(found, key=lambda record: record.number)

    @property
    def run_id(self) -> str | None:
        """The MLflow run of the whole search."""
        found = self._study.user_attrs.get(RUN)
        return None if found is None else str(found)

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._study.set_user_attr(RUN, run_id)

    def ask(self) -> tuple[Any, Values] | None:
        """The next trial (optuna.trial.Trial) and its values; None when all were tried, or nothing new is proposed."""
        finished = [record.values for record in self.records]
        for attempt in range(MAX_REPEATED if len(finished) < self.trials else 0):
            self._study.sampler = self._sampler(repeated=attempt > 0)
            trial = self._study.ask()
            values = suggest(trial, self._search.parameters)
            if values not in finished:
                return trial, values
            self._study.tell(trial, state=self._states.FAIL)  # without a record: the result is known already
        return None

    def _sampler(self, repeated: bool) -> Any:
        """`repeated`: the estimator proposed what was tried already, as it does in a small space; then at random."""
        begun_again = self._study.user_attrs.get(AGAIN, 0)  # the same values: an interruption changes no proposal
        samplers = self._optuna.samplers
        seed = self._seed + len(self._study.get_trials(deepcopy=False)) - begun_again
        if repeated:
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=min(STARTUP_TRIALS, max(1, self.trials // 2)))

    def tell(self, trial: Any, record: TrialRecord) -> None:
        """Keep a finished trial."""
        trial.set_user_attr(RECORD, record.to_json())
        if record.state == "complete":
            self._study.tell(trial, cost(record, self._search.metric))
        else:
            self._study.tell(trial, state=self._states.PRUNED if record.state == "pruned" else self._states.FAIL)

    def importance(self) -> dict[str, float]:
        """The share of each parameter in the differences between the results (PED-ANOVA, Watanabe et al.,
        arXiv:2304.10255), the largest first; {} with fewer than MIN_FOR_IMPORTANCE completed trials."""
        complete = self._study.get_trials(deepcopy=False, states=(self._states.COMPLETE,))
        if len(complete) < MIN_FOR_IMPORTANCE:
            return {}
        found: dict[str, float] = self._optuna.importance.get_param_importances(self._study)
        return {name: round(float(share), 4) for name, share in found.items()}

    @property
    def _states(self) -> Any:
        return self._optuna.trial.TrialState

    def _finished(self) -> list[Any]:
        ended = self._study.get_trials(deepcopy=False)
        return [trial for trial in ended if RECORD in trial.user_attrs and trial.state.is_finished()]

    def put_back(self, trial: Any) -> None:
        """Plan the trial of a canceled run again: its values did not end it."""
        self._study.enqueue_trial(trial.params, user_attrs=dict(trial.user_attrs))
        self._end(trial)

    def _begin_again(self) -> None:
        """End the trials of a process that was killed. Each is planned again, once; the second time it has failed."""
        for trial in self._study.get_trials(deepcopy=False, states=(self._states.RUNNING,)):
            if AGAIN in trial.user_attrs:
                self._add_failed(trial)
            else:
                planned = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                self._study.enqueue_trial(planned, user_attrs={AGAIN: True})
            self._end(trial)

    def _end(self, trial: Any) -> None:
        """End a trial without a record, after another one took its place: a process may be killed between the two."""
        self._study.tell(trial.number, state=self._states.FAIL)
        for name in (INTERRUPTED, AGAIN):
            self._study.set_user_attr(name, self._study.user_attrs.get(name, 0) + 1)

    def _add_failed(self, trial: Any) -> None:
        values = {name: decoded(name, value) for name, value in trial.params.items()}
        record = TrialRecord(len(self.records) + 1, "failed", values, reason=ENDED_TWICE)
        failed = self._optuna.trial.create_trial(
            state=self._states.FAIL,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={RECORD: record.to_json()},
        )
        self._study.add_trial(failed)

    @property
    def interruptions(self) -> int:
        """How many trials ended with their process or with a canceled run, in all runs."""
        return int(self._study.user_attrs.get(INTERRUPTED, 0))

    def _pruner(self) -> Any:
        """The pruner; a resource, or step, is a check."""
        pruners, checks = self._optuna.pruners, self._search.checks
        if self._search.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=PRUNED_AFTER)
        if self._search.pruner == "hyperband":
            return pruners.HyperbandPruner(min_resource=1, max_resource=checks, reduction_factor=3)
        return pruners.NopPruner()


def _repair(path: Path) -> None:
    """Remove what a killed process left: the last line, if it is not whole, and the lock. Optuna would append behind
    that line, and wait for that lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with path.open("r+b") as file:
                file.truncate(whole)
