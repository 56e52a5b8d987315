"""Training on a Ray cluster, with Ray Train."""

from __future__ import annotations

from pathlib import Path

from model.training.config import TrainConfig
from model.training.config_file import parse_config, render
from model.training.run import run


def ray_train(config: TrainConfig, *, workers: int, gpus: bool, address: str | None, retries: int = 3) -> None:
    """Run a configuration on a Ray cluster: one Ray Train worker per rank; all are started again from the last
    checkpoint, up to `retries` times, when one fails.

    The output folder must be on storage that all nodes share; Ray Train's own notes go to its `ray/`.

    Raises:
        Exception: that of the first worker that failed every time, as `run` raises it.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    ray.init(address=address, ignore_reinit_error=True)
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"text": render(config)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus else {}),
        ),
        run_config=RunConfig(
            storage_path=str(Path(config.output) / "ray"), failure_config=FailureConfig(max_failures=retries)
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        _, failure = min(error.worker_failures.items())
        raise getattr(failure, "_base_exc", failure) from None  # without Ray's wrapping: run()'s own errors say enough


def _ray_worker(settings: dict[str, str]) -> None:
    run(parse_config(settings["text"]))
