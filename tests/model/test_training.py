"""The trainer: stages, what it refuses, what it leaves behind. (Ranks and resuming: test_training_resume.py.)"""

from __future__ import annotations

import json
import resource
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from curation.compat import ensure_torchvision
from model.data.shards import DataError
from model.key_layouts import is_temporal
from model.tasks import ImageToVideo, Interpolation, Orbit, VideoModel
from model.tasks.camera_lora import LoraAdapters
from model.train_cli import train as command
from model.training.adamw import ExactAdamW
from model.training.checkpoint import CheckpointProblem, steps_in
from model.training.config import ComputeConfig, StageConfig, TrainConfig
from model.training.config_file import ConfigError, field_docs, load_config, parse_config, render, template
from model.training.cost import Shape, activation_bytes, estimate_memory, forward_flops
from model.training.ema import Ema
from model.training.parallelize import checkpoint_blocks
from model.training.precompute import precompute
from model.training.presets import PRESETS, preset, tiny_variant
from model.training.run import run
from model.training.stage import NonFiniteLoss
from model.training.stage_data import stage_data
from model.training.starting_point import starting_point
from model.training.validate import validate
from model.unet import UNetConfig, VideoUNet
from model.video_io import film_frames
from tests.model.training_shards import clip, make_shards, write_shard

pytestmark = pytest.mark.timeout(1500)

HEAD = """
output: {output}
data: {{shards: [{shards}], workers: 0}}
model: {{size: tiny, autoencoder: haar, image_encoder: untrained, text_encoder: untrained}}
compute: {{precision: fp32, checkpointing: none}}
saving: {{every: {every}, validate_every: {validate}, validation_clips: 1, validation_steps: 2, log_every: 1}}
stages:
"""
SMALL = "height: 32, width: 32, global_batch: 2, warmup_steps: 1, steps: 2"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(
        tmp_path_factory.mktemp("shards"), shards=1, clips=4, size=(32, 48), camera="horizontal", elevation_deg=10.0
    )


def _config(output: Path, shards: Path, *stages: str, every: int = 100, validate: int = 0) -> TrainConfig:
    text = HEAD.format(output=output, shards=shards, every=every, validate=validate)
    for stage in stages:
        own = {each.partition(":")[0] for each in stage.split(", ")}
        small = ", ".join(each for each in SMALL.split(", ") if each.partition(":")[0] not in own)
        text += f"  - {{tiny: true, {small}, {stage}}}\n"
    return parse_config(text)


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "steps", "batch", "rate", "p_mean", "p_std"),
    [
        ("image-finetune", (1, 256, 384), 30_000, None, None, -1.2, 1.0),
        ("image-noise-schedule", (1, 512, 512), 1000, None, None, -1.2, 1.0),
        ("video-256", (14, 256, 384), 150_000, 1536, 1e-4, -1.2, 1.0),
        ("video-320", (14, 320, 576), 100_000, 768, 1e-4, 0.0, 1.0),
        ("text-to-video-576", (14, 576, 1024), 50_000, 768, 3e-5, 0.5, 1.4),
        ("image-to-video-320", (14, 320, 576), 50_000, 768, 3e-5, 0.7, 1.6),
        ("image-to-video-576", (14, 576, 1024), 50_000, 768, 3e-5, 1.0, 1.6),
        ("image-to-video-576-25", (25, 576, 1024), 50_000, 768, 3e-5, 1.0, 1.6),
        ("interpolation", (5, 576, 1024), 10_000, 256, 1e-4, 1.0, 1.2),
        ("multi-view", (21, 576, 576), 12_000, 16, 1e-5, None, None),
    ],
)
def test_presets_have_the_papers_numbers(
    name: str, size: tuple[int, int, int], steps: int, batch: int | None, rate: float | None, p_mean: float | None,
    p_std: float | None,
) -> None:  # fmt: skip
    stage = preset(name)
    assert (stage.frames, stage.height, stage.width) == size
    assert stage.steps == steps
    for found, published in ((stage.global_batch, batch), (stage.learning_rate, rate), (stage.p_mean, p_mean)):
        assert published is None or found == published
    assert p_std is None or stage.p_std == p_std
    if name.startswith("video-"):
        assert stage.drop_context == 0.15
    if "576" in name or name == "interpolation":
        assert stage.ema_decay == 0.9999
    small = tiny_variant(stage)
    assert (small.task, small.trainable) == (stage.task, stage.trainable)
    assert small.p_mean == (stage.p_mean if stage.p_mean < 0 else 0)  # pictures of 24x32 are lost in less noise
    assert small.p_std == (stage.p_std if stage.p_std < 1.4 else 1.4)


def test_camera_loras_are_rank_16_on_clips_of_their_label() -> None:
    for label in ("horizontal", "zooming", "static"):
        stage = preset(f"camera-{label}")
        assert stage.lora is not None
        assert (stage.lora.rank, stage.steps, stage.camera) == (16, 5000, (label,))


def test_every_field_is_explained_and_a_rendered_configuration_loads_again() -> None:
    for cls in (TrainConfig, StageConfig, ComputeConfig):
        assert all(field_docs(cls)[f.name] for f in fields(cls)), cls
    for tiny in (True, False):
        config = parse_config(template([*list(PRESETS)[:3], "interpolation"], tiny=tiny).replace("path/to", "/p"))
        assert parse_config(render(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("foo: 1", r"stages\.0\.foo: unknown key|foo: unknown key"),
        ("frames: four", r"stages\.0\.frames"),
        ("learning_rate: 0", r"learning_rate: 0.*more than 0"),
        ("drop_context: 1.5", r"drop_context"),
        ("fps: [9, 3]", r"fps"),
        ("image_share: 0.5", r"text_to_video"),
        ("learning_rate: .nan", r"learning_rate: nan; a finite number"),
        ("p_mean: .inf", r"p_mean: inf; a finite number"),
        ("beta2: 1", r"beta2: 1\.0; 0 or more, below 1"),
        ("augmentation_std: -1", r"augmentation_std: -1\.0; 0 or more"),
        ("weight_decay: -1", r"weight_decay: -1\.0; 0 or more"),
        ("lora: {rank: 0}", r"lora\.rank: 0; at least 1"),
        ("trainable: '('", r"trainable: '\(' is no regular expression"),
        ("caption_weights: {coca: 1}", r"caption_weights\.coca: unknown kind; known: spatial, temporal, merged"),
        ("caption_weights: {spatial: -1}", r"caption_weights\.spatial: -1\.0; 0 or more"),
        ("name: ../elsewhere", r"name '\.\./elsewhere'.*no /"),
        ("caption_weights: {spatial: 0, merged: 0}", r"caption_weights: .*one must be above 0"),
        ("lora: {alpha: .nan}", r"lora\.alpha: nan; a finite number above 0"),
        ("task: text_to_video, frames: 1, lora: {}", r"lora: adapts the temporal layers"),
        ("lora: {alpha: 0}", r"lora\.alpha: 0\.0; a finite number above 0"),
        ("fps: [1, .inf]", r"fps: inf; a finite number"),
        ("name: ''", r"name ''.*not empty"),
        ('name: "a\\0b"', r"name 'a\\x00b'.*no control characters"),
        (f"name: {'n' * 300}", r"name nnn.*at most 200 bytes"),
        ("steps: 3, steps: 4", r"^configuration: not YAML: steps is given twice in .* line 8, column \d+"),
        ("steps: [", r"^configuration: not YAML: .*$"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(tmp_path, tmp_path, f"preset: image-to-video-320, {change}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compute: {micro_batch: 0}", r"compute\.micro_batch: 0; at least 1"),
        ("compute: {replicate: 0}", r"compute\.replicate: 0; at least 1"),
        ("compute: {threads: -1}", r"compute\.threads: -1; at least 0"),
        ("compute: {encode_chunk: 0}", r"compute\.encode_chunk: 0; at least 1"),
        ("saving: {every: 0}", r"saving\.every: 0; at least 1"),
        ("saving: {log_every: 0}", r"saving\.log_every: 0; at least 1"),
        ("saving: {validation_steps: 0}", r"saving\.validation_steps: 0; at least 1"),
        ("saving: {peak_tflops: 0}", r"saving\.peak_tflops: 0\.0; more than 0"),
        ("data: {shards: [x], workers: -1}", r"data\.workers: -1; at least 0"),
        ("data: {shards: [x], prefetch: 0}", r"data\.prefetch: 0; at least 1"),
        ("output: ''", r"output: empty"),
        (f"seed: {10**30}", r"seed: 10{30}; 0 or more, below"),
        ("stages: {preset: video-256}", r"stages: a list is needed"),
        ("stages: [{preset: [video-256]}]", r"stages\.0\.preset: no preset is called .*; known"),
        ("stages: [{preset: video-256, tiny: maybe}]", r"stages\.0\.tiny: 'maybe'; true or false"),
    ],
)
def test_a_bad_value_outside_the_stages_is_refused_with_its_path(change: str, message: str) -> None:
    whole = {"output": "run", "data": {"shards": ["x"]}, "stages": [{"preset": "video-256"}]}
    with pytest.raises(ConfigError, match=message):
        parse_config(yaml.safe_dump(whole | yaml.safe_load(change)))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"a\.yaml: not text"):
        load_config(tmp_path / "a.yaml")


def test_validation_refuses_replicas_that_do_not_come_out(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path, shards, "preset: image-to-video-320")
    odd = replace(config, compute=replace(config.compute, replicate=3))
    with pytest.raises(ConfigError, match=r"compute\.replicate: 3 copies of the model on 2 ranks"):
        list(validate(odd, ranks=2))


def test_nothing_to_train_and_replicas_that_do_not_come_out_stop_a_run_before_it_starts(
    tmp_path: Path, shards: Path
) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320, trainable: nothing")
    for attempt in (lambda: run(config), lambda: list(validate(config))):
        with pytest.raises(ConfigError, match=r"no parameter matches trainable 'nothing'"):
            attempt()
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320")
    with pytest.raises(ConfigError, match=r"compute\.replicate: 3 copies of the model on 1 ranks"):
        run(replace(config, compute=replace(config.compute, replicate=3)))


def test_other_images_are_other_data(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: joint-image-video")
    stage, found = config.stages[0], []
    for number in (2, 3):
        images = make_shards(tmp_path / f"images-{number}", number)
        data = replace(config.data, images=(str(images),))
        found.append(stage_data(data, stage, seed=0, size_multiple=8).fingerprint)
    own = stage_data(config.data, stage, seed=0, size_multiple=8).fingerprint
    assert len({own, *found}) == 3


def test_a_size_the_network_cannot_take_says_which_would_do(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320")
    odd = replace(config, stages=(replace(config.stages[0], height=30),))
    with pytest.raises(ConfigError, match=r"30x32.*multiples of 8"):
        run(odd)
    assert not list((tmp_path / "run").rglob("step-*"))


def test_a_later_stage_that_cannot_run_is_refused_before_the_first_one_trains(tmp_path: Path, shards: Path) -> None:
    first = "preset: image-to-video-320, learned_c_in: scale"
    for later, message in (
        ("preset: camera-zooming", r"stage camera-zooming: .*are not labelled zooming"),
        ("preset: image-to-video-576, height: 30", r"stage image-to-video-576: size 30x32.*multiples of 8"),
        ("preset: image-to-video-576, learned_c_in: function", r"learned_c_in: function, but it starts .*kind scale"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            run(_config(tmp_path / "run", shards, first, "preset: image-to-video-320, name: between", later))
    assert not list((tmp_path / "run").rglob("step-*"))
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


def test_an_encoder_that_a_later_stage_needs_is_asked_for_before_the_first_one_trains(
    tmp_path: Path, shards: Path
) -> None:
    config = _config(tmp_path / "run", shards, "preset: video-320", "preset: image-to-video-320")
    nothing = replace(config, model=replace(config.model, image_encoder="from start"))
    with pytest.raises(ConfigError, match=r"stage image-to-video-320: image_to_video needs model\.image_encoder"):
        run(nothing)
    ensure_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    wider = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         image_size=32, patch_size=16, projection_dim=48)
    )  # fmt: skip
    wider.save_pretrained(tmp_path / "wide" / "image_encoder")
    wide = replace(config, model=replace(config.model, image_encoder=str(tmp_path / "wide")))
    for attempt in (lambda: run(wide), lambda: list(validate(wide))):
        with pytest.raises(ConfigError, match=r"image_encoder gives tokens of 48 channels.*reads 32"):
            attempt()
    assert not list((tmp_path / "run").rglob("step-*"))


def test_shards_of_validation_are_looked_at_before_the_run(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path, shards, "preset: image-to-video-320", validate=1)
    nowhere = replace(config, data=replace(config.data, validation=(str(tmp_path / "nowhere"),)))
    with pytest.raises(DataError, match=r"stage image-to-video-320: .*nowhere: no shard there"):
        list(validate(nowhere))


def test_the_command_line_explains_itself(tmp_path: Path, shards: Path) -> None:
    cli = CliRunner()
    assert "video-256" in cli.invoke(command, ["template"]).output
    written = cli.invoke(command, ["template", "image-to-video-320", "--tiny"]).output
    path = tmp_path / "run.yaml"
    path.write_text(written.replace("demo-out/shards/default", str(shards)).replace("runs/my-run", str(tmp_path / "r")))
    found = cli.invoke(command, ["validate", str(path)])
    assert found.exit_code == 0, found.output
    assert "4 samples" in found.output
    assert "M parameters" in found.output
    refused = cli.invoke(command, ["validate", str(path), "--memory-gib", "0.01"])
    assert refused.exit_code == 1
    assert "cannot fit" in refused.output
    assert "checkpointing: full" in refused.output
    assert "no such file" in cli.invoke(command, [str(tmp_path / "none.yaml")]).output.lower()


# ---- stages --------------------------------------------------------------------------------------------------------


def test_a_chain_of_stages_and_a_lora_trains_and_samples(tmp_path: Path, shards: Path) -> None:
    config = _config(
        tmp_path / "run", shards, "preset: image-noise-schedule", "preset: video-320, image_share: 0.5, name: joint",
        "preset: image-to-video-320, learned_c_in: scale", "preset: camera-horizontal", validate=2,
    )  # fmt: skip
    adapter = run(config)
    names = ("01-image-noise-schedule", "02-joint", "03-image-to-video-320")
    first, joint, video = (VideoModel.load(tmp_path / "run" / name / "model") for name in names)
    assert (first.description.task, video.description.task) == ("text_to_video", "image_to_video")
    assert video.unet.config.in_channels == 2 * joint.unet.config.in_channels
    assert video.description.motion is not None, "the map from score to bucket travels with the model"
    loras = LoraAdapters(video.unet)
    loras.load(adapter)
    image = torch.zeros(1, 3, 32, 32)
    made = ImageToVideo(video)(image, frames=6, options=video.options(steps=2))
    assert made.shape == (1, 6, 3, 32, 32)
    assert torch.isfinite(made).all()
    assert len(list((tmp_path / "run" / "03-image-to-video-320" / "samples").glob("*.mp4"))) == 1
    lines = (tmp_path / "run" / "03-image-to-video-320" / "metrics.jsonl").read_text().splitlines()
    assert {"loss", "grad_norm", "samples_per_s", "data_wait_share", "validation/psnr"} <= set(json.loads(lines[-1]))
    assert any(k.startswith("loss/sigma") for k in json.loads(lines[-1]))
    assert run(config) == adapter, "a finished run is not run again"


@pytest.mark.parametrize(("name", "task"), [("interpolation", Interpolation), ("multi-view", Orbit)])
def test_other_tasks_train_and_sample(tmp_path: Path, shards: Path, name: str, task: Any) -> None:
    model = VideoModel.load(run(_config(tmp_path / "run", shards, f"preset: {name}, frames: 4")))
    image = torch.zeros(1, 3, 32, 32)
    inputs = (image, image) if name == "interpolation" else (image,)
    assert task(model)(*inputs, frames=4, options=model.options(steps=2)).shape == (1, 4, 3, 32, 32)
    if name == "interpolation":
        assert model.mask_embedding is not None
        assert model.mask_embedding.z_m.abs().max() > 0, "the mask was learned"


def test_what_every_rank_holds_whole_trains_beside_sharded_weights(tmp_path: Path, shards: Path) -> None:
    """As on GPUs: sums as they come, and the fused optimizer."""
    config = _config(tmp_path / "run", shards, "preset: interpolation, frames: 3, learned_c_in: function")
    model = VideoModel.load(run(replace(config, compute=replace(config.compute, precision="bf16", exact=False))))
    assert model.mask_embedding is not None
    assert model.mask_embedding.z_m.abs().max() > 0
    assert model.input_scale is not None
    assert model.input_scale.out.weight.abs().max() > 0


def test_a_learned_c_in_stays_with_the_stages_that_follow(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path, shards, "preset: video-320, learned_c_in: scale", "preset: image-to-video-320")
    first = starting_point(config, config.stages[0], None, None)
    assert first.input_scale is not None
    torch.nn.init.constant_(first.input_scale.log_scale, 0.5)
    starting_point(config, config.stages[1], first, None).save(tmp_path / "model")
    found = VideoModel.load(tmp_path / "model").input_scale
    assert found is not None
    assert found.log_scale == 0.5
    with pytest.raises(ConfigError, match=r"learned_c_in: function, but it starts from .*of kind scale"):
        starting_point(config, replace(config.stages[1], learned_c_in="function"), first, None)


def test_added_inputs_do_not_change_the_network_at_first(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path, shards, "preset: video-320", "preset: image-to-video-320", "preset: interpolation")
    base = starting_point(config, config.stages[0], None, None)
    torch.nn.init.normal_(base.unet.conv_out.weight)
    x, ids, context = torch.randn(1, 4, 48, 8, 8), torch.rand(1, 3), torch.randn(1, 1, 32)
    expected = base.unet(x, torch.zeros(1), context, ids)
    for stage in config.stages[1:]:
        wider = starting_point(config, stage, base, None).unet
        extra = torch.randn(1, 4, wider.config.in_channels - 48, 8, 8)
        torch.testing.assert_close(wider(torch.cat([x, extra], 2), torch.zeros(1), context, ids), expected)
    orbit = starting_point(config, replace(config.stages[1], task="orbit"), base, None).unet
    more = torch.cat([ids, torch.full((1, 1), 30.0)], 1)
    both = torch.cat([x, torch.zeros_like(x)], 2)
    torch.testing.assert_close(orbit(both, torch.zeros(1), context, more), expected)


def test_an_image_model_starts_as_itself(tmp_path: Path, shards: Path) -> None:
    """Its group norms too: in faint pictures an epsilon of 1e-6 in place of 1e-5 would show."""
    ensure_torchvision()
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    image = UNet2DConditionModel(
        in_channels=48, out_channels=48, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True,
    ).eval()  # fmt: skip
    image.save_pretrained(tmp_path / "sd" / "unet")
    config = _config(tmp_path / "run", shards, "preset: image-finetune")
    config = replace(config, model=replace(config.model, start=str(tmp_path / "sd")))
    video = starting_point(config, config.stages[0], None, None).unet
    x, context = 0.01 * torch.randn(2, 1, 48, 8, 8), torch.randn(2, 7, 32)
    with torch.no_grad():
        expected = image(x[:, 0], 0.5, context).sample
        only = torch.ones(2, 1, dtype=torch.bool)
        found = video(x, torch.full((2,), 0.5), context, torch.rand(2, 3), image_only=only)[:, 0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_frozen_networks_come_from_the_directories_that_the_configuration_names(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320")
    made = starting_point(config, config.stages[0], None, None)
    made.save(tmp_path / "model")
    place = str(tmp_path / "model")
    named = replace(config.model, autoencoder=place, image_encoder=place, text_encoder=place)
    read = starting_point(replace(config, model=named, seed=1), config.stages[0], None, None)
    for kind in ("image_encoder", "text_encoder"):
        before, after = (getattr(model, kind).state_dict() for model in (made, read))
        assert before.keys() == after.keys(), kind
        assert all(torch.equal(before[name], after[name]) for name in before), kind
    assert read.autoencoder.kind == made.autoencoder.kind


def test_only_what_a_stage_trains_changes(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-noise-schedule")
    before = starting_point(config, config.stages[0], None, None).unet.state_dict()
    after = VideoModel.load(run(config)).unet.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"time_embedding"}


def test_an_image_stage_leaves_the_temporal_layers_alone(tmp_path: Path, shards: Path) -> None:
    """They get no gradient: weight decay would be all that happens to them, 3 % over the paper's 30,000 steps."""
    config = _config(tmp_path / "run", shards, "preset: image-finetune, weight_decay: 0.5, learning_rate: 0.01")
    before = starting_point(config, config.stages[0], None, None).unet.state_dict()
    after = VideoModel.load(run(config)).unet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if is_temporal(name)]
    assert "down_blocks.0.resnets.0.spatial_res_block.conv1.weight" in changed
    nothing = replace(config, stages=(replace(config.stages[0], trainable=r".*\.temporal_res_block\..*"),))
    with pytest.raises(ConfigError, match="outside of the temporal layers, which single images do not train"):
        run(replace(nothing, output=str(tmp_path / "b")))


def test_precomputed_latents_train_like_clips(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320, crop: center, fps: [12, 12], frames: 12")
    path = tmp_path / "run.yaml"
    path.write_text(render(config))
    cli = CliRunner()
    found = cli.invoke(command, ["precompute", str(path), "-o", str(tmp_path / "latents")])
    assert "4 clips encoded" in found.output, found.output
    (tmp_path / "latents" / "000007.tar.tmp").write_bytes(b"what a killed run leaves")
    assert "0 clips encoded" in cli.invoke(command, ["precompute", str(path), "-o", str(tmp_path / "latents")]).output
    latents = replace(
        config, output=str(tmp_path / "b"), data=replace(config.data, shards=(str(tmp_path / "latents"),))
    )
    run(config)
    run(latents)
    losses = [
        [json.loads(line)["loss"] for line in next(folder.rglob("metrics.jsonl")).read_text().splitlines()]
        for folder in (tmp_path / "run", tmp_path / "b")
    ]
    # The same clips, crops and noise: what differs is the rounding of the latents to bfloat16, and the first frame.
    assert np.allclose(losses[0], losses[1], rtol=0.02)
    short = replace(latents, output=str(tmp_path / "c"), stages=(replace(config.stages[0], frames=13),))
    with pytest.raises(DataError, match="fewer precomputed frames"):
        run(short)


def test_clips_are_sampled_at_the_size_of_their_bucket(tmp_path: Path) -> None:
    clips = write_shard(tmp_path / "0.tar", [clip(0, size=(64, 32)), clip(1, size=(32, 48)), clip(2, size=(64, 32))])
    config = _config(
        tmp_path / "text", clips, "preset: video-256, aspect_buckets: true, frames: 3, steps: 1", validate=1
    )
    config = replace(config, saving=replace(config.saving, validation_clips=2))
    run(config)
    assert "3 clips encoded" in precompute(config, None, str(tmp_path / "latents"))
    config = replace(config, output=str(tmp_path / "b"), data=replace(config.data, shards=(str(tmp_path / "latents"),)))
    run(config)
    for output in ("text", "b"):
        films = sorted((tmp_path / output).rglob("*.mp4"))
        found = [next(iter(film_frames(film))).shape[1:] for film in films]
        assert found == ([(40, 48), (24, 80)] if output == "text" else [(40, 24), (24, 40)]), output


def test_a_clip_that_cannot_be_decoded_is_replaced_in_validation_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, _, facts, caption = clip(0, size=(32, 48))
    clips = write_shard(tmp_path / "0.tar", [(key, b"no video", facts, caption), clip(1, size=(32, 48))])
    config = _config(tmp_path / "run", clips, "preset: image-to-video-320, frames: 3, steps: 1", validate=1)
    with pytest.raises(DataError, match=r"clip0000.*cannot be decoded"):
        run(config)
    run(replace(config, data=replace(config.data, bad_sample="replace")))
    assert "clip0000" in caplog.text
    assert [path.name.split("-")[2] for path in (tmp_path / "run").rglob("*.mp4")] == ["clip0001"]


def test_a_sample_of_a_clip_in_a_folder_of_its_shard_lies_with_the_others(tmp_path: Path) -> None:
    clips = [("a/../../../../b", *clip(0, size=(32, 48))[1:])]
    config = _config(
        tmp_path / "run", write_shard(tmp_path / "0.tar", clips), "preset: image-to-video-320, steps: 1", validate=1
    )
    run(config)
    found = list(tmp_path.rglob("*.mp4"))
    assert [path.parent.name for path in found] == ["samples"]
    assert found[0].name == "step-00000001-a-..-..-..-..-b-0.mp4"


def test_sampling_on_the_way_changes_no_update(tmp_path: Path, shards: Path) -> None:
    losses = []
    for validate_every in (0, 1):
        config = _config(
            tmp_path / str(validate_every), shards, "preset: image-to-video-320, frames: 3", validate=validate_every
        )
        run(replace(config, compute=replace(config.compute, precision="bf16")))
        lines = next((tmp_path / str(validate_every)).rglob("metrics.jsonl")).read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]


# ---- sums and updates ----------------------------------------------------------------------------------------------


def test_accumulated_micro_batches_give_the_result_of_the_large_batch(tmp_path: Path, shards: Path) -> None:
    results = []
    for micro in (1, 4):
        config = _config(tmp_path / str(micro), shards, "preset: image-to-video-320, global_batch: 4")
        config = replace(config, compute=replace(config.compute, micro_batch=micro))
        results.append(VideoModel.load(run(config)).unet.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-3, atol=2e-4)


def test_exact_adamw_is_adamw() -> None:
    torch.manual_seed(0)
    weights = torch.randn(50, 7)
    a, b = (torch.nn.Parameter(weights.clone()) for _ in range(2))
    ours = ExactAdamW([a], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    theirs = torch.optim.AdamW([b], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(20):
        a.grad = torch.randn(50, 7)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_averages_follow_the_published_warm_up() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({"w": weight}, 0.9999)
    with torch.no_grad():
        weight.fill_(1.0)
    ema.update()
    assert torch.allclose(ema.averages["w"], torch.full((3,), 1 - 2 / 11))
    with ema.swapped_in():
        assert weight[0] < 1
    assert weight[0] == 1


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_changes_memory_and_not_gradients(mode: str) -> None:
    torch.manual_seed(0)
    plain, saving = VideoUNet(UNetConfig.tiny()), VideoUNet(UNetConfig.tiny())
    torch.nn.init.normal_(plain.conv_out.weight)
    saving.load_state_dict(plain.state_dict())
    checkpoint_blocks(saving, mode)
    inputs = torch.randn(1, 3, 8, 16, 16), torch.zeros(1), torch.randn(1, 1, 32), torch.rand(1, 3)
    for network in (plain, saving):
        network(*inputs).square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)
    shape = Shape(1, 6, 32, 32, 1)
    kept = {
        m: activation_bytes(UNetConfig.tiny(), shape, ComputeConfig(checkpointing=m)).kept  # type: ignore[arg-type]
        for m in ("none", "selective", "full")
    }
    assert kept["full"] < kept["selective"] < kept["none"]


def test_flops_are_those_of_the_published_network() -> None:
    counted = forward_flops(UNetConfig.svd(), Shape(1, 14, 40, 72, 1))
    # diffusers' network counts 12.139e12; this one computes cross-attention to a single token once, not per pixel.
    assert 0.93 < counted / 12.139e12 < 1.0


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "replicate"), [(1, 1), (2, 2)])
def test_a_rank_that_shards_with_no_other_holds_all_of_the_network_in_bfloat16(ranks: int, replicate: int) -> None:
    config = UNetConfig.tiny(layers_per_block=3)
    parameters = sum(p.numel() for p in VideoUNet(config).parameters())
    compute, shape = ComputeConfig(precision="bf16", replicate=replicate), Shape(1, 2, 8, 8, 1)
    alone = estimate_memory(config, shape, compute, ranks=ranks)
    assert alone.gathered > 2 * parameters
    assert estimate_memory(config, shape, compute, ranks=2 * ranks).gathered < alone.gathered, "two units at a time"


def test_a_loss_that_is_not_finite_stops_before_the_update_with_the_sample_ids(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320, learning_rate: 1e30", every=1)
    with pytest.raises(NonFiniteLoss, match=r"step 2 .*clip000\d"):
        run(config)
    folder = tmp_path / "run" / "01-image-to-video-320"
    report = json.loads((folder / "non-finite-step-00000002.json").read_text())
    assert report
    assert all(r["sample"].startswith("clip") and r["sigma"] > 0 for r in report)
    assert steps_in(folder / "checkpoints") == [1], "what was saved is from before"


def test_a_model_that_cannot_be_sampled_on_the_way_is_one_line(tmp_path: Path, shards: Path) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320, learning_rate: 1e30", validate=1)
    found = CliRunner().invoke(command, [_written(tmp_path, config)])
    assert "Error: step 1 of image-to-video-320 cannot be sampled for validation: the network prod" in found.output
    assert "validate_every: 0" in found.output


def test_a_full_disk_leaves_the_earlier_checkpoints_and_says_so(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(tmp_path / "run", shards, "preset: image-to-video-320", every=1)
    checkpoints = tmp_path / "run" / "01-image-to-video-320" / "checkpoints"
    run(replace(config, stages=(replace(config.stages[0], steps=1),)))
    import shutil

    shutil.rmtree(checkpoints.parent / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # writing past 1 MB fails, as on a full disk
    try:
        with pytest.raises(CheckpointProblem, match=r"step 3 could not be written.*newest complete one is step 1"):
            run(replace(config, stages=(replace(config.stages[0], steps=3),)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps_in(checkpoints) == [1]
    assert not list(checkpoints.glob("*.tmp"))
    assert "trying once more" in caplog.text
    assert VideoModel.load(run(replace(config, stages=(replace(config.stages[0], steps=3),)))), "and it recovers"


def test_checkpoints_of_other_settings_or_damaged_ones_are_refused(tmp_path: Path, shards: Path) -> None:
    import shutil

    config = _config(tmp_path / "run", shards, "preset: image-to-video-320", every=1)
    run(config)
    folder = tmp_path / "run" / "01-image-to-video-320"
    assert steps_in(folder / "checkpoints") == [1, 2]
    shutil.rmtree(folder / "model")
    other = replace(config, stages=(replace(config.stages[0], learning_rate=1e-5, p_mean=0.1),))
    with pytest.raises(CheckpointProblem, match=r"learning_rate: 0.001 then, 1e-05 now; p_mean"):
        run(other)
    with pytest.raises(CheckpointProblem, match=r"data\.window_shards: 16 then, 1 now"):  # another order of the samples
        run(replace(config, data=replace(config.data, window_shards=1)))
    part = next((folder / "checkpoints" / "step-00000002").glob("*.distcp"))
    with open(part, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointProblem, match=r"has 1000 bytes of .*Remove"):
        run(config)
    shutil.rmtree(part.parent)
    run(config)
    exported = CliRunner().invoke(
        command, ["export", _written(tmp_path, config), "--step", "1", "-o", str(tmp_path / "m")]
    )
    assert exported.exit_code == 0, exported.output
    assert VideoModel.load(tmp_path / "m").description.task == "image_to_video"


def _written(tmp_path: Path, config: TrainConfig) -> str:
    path = tmp_path / "written.yaml"
    path.write_text(render(config))
    return str(path)


def test_numbers_reach_tensorboard(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from model.training.metrics import Metrics

    metrics = Metrics(tmp_path, every=10, steps=2)
    metrics.step(1, {"loss": 2.0, "grad_norm": 1.0, "samples_per_s": 3.0, "mfu": float("nan")})
    metrics.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("loss")[0].value == 2.0
    assert "mfu" not in events.Tags()["scalars"], "what is not known is no number"
