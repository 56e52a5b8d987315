"""Which model plays which role, and where its weights are: role -> implementation -> weights.

Models are found or refused before work starts. A *role* is what a stage needs (a learned flow, an image-text
similarity); an *implementation* is a class that plays it; its *weights* are a file of an installed package, a published
file, a repository of the hub, or a path that the user names. Two profiles choose an implementation for every role:
`offline` uses only weights that come with packages, `paper` those that Stable Video Diffusion names. A job mixes them
role by role. Names say what a model is: nothing is called CLIP, RAFT, CoCa or VideoBLIP unless it is.

For the pipeline:

    choices = choose("offline", {"flow": {"implementation": "raft_large", "weights": "/models/raft.pth"}})
    for report in check(choices): ...           # preflight: report.problem is None, or one line with the way out
    scorer = load(choices["flow"], device="cuda")   # an object with .name and the role's method (see each module)

A role that a profile has no model for is absent from `choices`, and `NO_MODEL` says why.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curation import weights as packaged
from curation.weights import PackagedWeights, WeightsUnavailable
from curation.weights_remote import HubWeights, LocalWeights, UrlWeights

Weights = PackagedWeights | UrlWeights | HubWeights | LocalWeights

ROLES: dict[str, str] = {
    "text": "text detection: area under text, and watermarks",
    "flow": "learned optical flow: the motion score of the last stage",
    "similarity": "image and text embeddings: caption similarity, search, near-duplicates",
    "aesthetic": "how good a frame looks",
    "nsfw": "probability that a frame is not safe for work",
    "caption_spatial": "caption of the middle frame",
    "caption_temporal": "caption of the whole clip",
    "caption_merge": "language model that merges the two captions",
}


@dataclass(frozen=True)
class Implementation:
    """One way to play a role.

    Attributes:
        loads: `module:class`; the class takes `weights` (list of paths, in the order below), `device` and `options`.
        weights: what it needs; empty if nothing.
        options: keyword arguments that make this implementation of the class.
        local_files: what a folder named by the user instead of `weights` must hold.
        works_on: for a head on embeddings, the implementations of `similarity` whose embeddings it was trained on.
        source_frames: it looks at frames no larger than those that travel with a clip (128 px, 2 fps), so the clip need
            not be decoded again.
        batched: it takes `batch`, how many items go into one call of the network.
        gpu: it runs on a GPU where its worker has one.
    """

    role: str
    name: str
    loads: str
    weights: tuple[Weights, ...]
    doc: str
    options: Mapping[str, Any] = field(default_factory=dict)
    local_files: tuple[str, ...] = ()
    works_on: tuple[str, ...] = ()
    source_frames: bool = False
    batched: bool = True
    gpu: bool = True


@dataclass(frozen=True)
class Choice:
    """An implementation with the weights that this job uses, and the batch where the job gives one."""

    implementation: Implementation
    weights: tuple[Weights, ...]
    batch: int | None = None

    @property
    def role(self) -> str:
        """The role it plays."""
        return self.implementation.role


@dataclass(frozen=True)
class Report:
    """What `check` found for one role: `problem` is None when every file is there and is the right one."""

    role: str
    implementation: str
    weights: tuple[Weights, ...]
    found: tuple[Path | None, ...]
    problem: str | None


_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CLIP_LOCAL = ("open_clip_config.json",)
_MODEL_FILES = ("config.json",)
_TRANSFORMERS_FILES = ("config.json", "*.json", "*.txt", "*.model", "*.bin", "*.safetensors")

_ALL = (
    Implementation(
        "text",
        "craft",
        "curation.text_area:CraftTextArea",
        (packaged.CRAFT,),
        "CRAFT (Baek et al. 2019), EasyOCR's weights",
        batched=False,
    ),
    Implementation(
        "text",
        "ppocr",
        "curation.text_area:PPOCRTextArea",
        (packaged.PP_OCR_DETECTOR,),
        "PP-OCRv6 small detector",
        batched=False,
        gpu=False,
    ),
    Implementation(
        "flow",
        "rife",
        "curation.rife:RifeMotion",
        (packaged.RIFE,),
        "flow of the frame interpolator RIFE 4.0 (not RAFT)",
        source_frames=True,
    ),
    Implementation(
        "flow",
        "raft_large",
        "curation.raft:RaftMotion",
        (
            UrlWeights(
                "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
                "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
                "ff5fadd5",
                20_129 << 10,
                "BSD-3-Clause",
            ),
        ),
        "RAFT (Teed and Deng 2020), torchvision's large model",
        options={"size": "large"},
    ),
    Implementation(
        "flow",
        "raft_small",
        "curation.raft:RaftMotion",
        (
            UrlWeights(
                "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth",
                "raft_small_C_T_V2-01064c6d.pth",
                "01064c6d",
                3_821 << 10,
                "BSD-3-Clause",
            ),
        ),
        "RAFT, torchvision's small model",
        options={"size": "small"},
    ),
    Implementation(
        "flow",
        "farneback_torch",
        "curation.farneback_torch:FarnebackTorchMotion",
        (),
        "Farneback as torch code, for a GPU: the flow of motion.coarse, not a learned one",
        source_frames=True,
    ),
    Implementation(
        "similarity",
        "conse",
        "curation.conse:ConseSimilarity",
        (packaged.EFFICIENTNET_LITE0, packaged.MINILM),
        "ConSE: ImageNet classes of EfficientNet-Lite0 as MiniLM text vectors (sees ImageNet nouns only; not CLIP)",
    ),
    Implementation(
        "similarity",
        "clip_vit_l14_openai",
        "curation.clip:ClipSimilarity",
        (
            UrlWeights(
                "https://openaipublic.azureedge.net/clip/models/"
                "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
                "openai-clip-ViT-L-14.pt",
                "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
                2 * 427_616_513,  # half precision
                "MIT",
            ),
        ),
        "CLIP ViT-L/14 by OpenAI, through open_clip",
        options={"architecture": "ViT-L-14-quickgelu"},
        local_files=_CLIP_LOCAL,
    ),
    Implementation(
        "similarity",
        "clip_vit_h14_laion2b",
        "curation.clip:ClipSimilarity",
        (HubWeights("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _CLIP_FILES, 4 * 986_109_441, "MIT"),),
        "CLIP ViT-H/14 by LAION, through open_clip",
        options={"architecture": "ViT-H-14"},
        local_files=_CLIP_LOCAL,
    ),
    Implementation(
        "aesthetic",
        "niqe",
        "curation.niqe:NiqeQuality",
        (packaged.NIQE,),
        "NIQE (no-reference quality; lower is better)",
        batched=False,
        gpu=False,
    ),
    Implementation(
        "aesthetic",
        "laion_linear_vit_l14",
        "curation.aesthetic:LaionAesthetic",
        (
            UrlWeights(
                "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
                "sa_0_4_vit_l_14_linear.pth",
                "",
                4 * 769,
                "MIT",
            ),
        ),
        "LAION's linear aesthetic head on CLIP ViT-L/14 embeddings",
        works_on=("clip_vit_l14_openai",),
        batched=False,
        gpu=False,
    ),
    Implementation(
        "aesthetic",
        "laion_mlp_vit_l14",
        "curation.aesthetic:LaionAesthetic",
        (
            UrlWeights(
                "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
                "sac%2Blogos%2Bava1-l14-linearMSE.pth",
                "sac+logos+ava1-l14-linearMSE.pth",
                "",
                4 * 925_537,
                "Apache-2.0",
            ),
        ),
        "LAION's improved aesthetic head (MLP) on CLIP ViT-L/14 embeddings",
        works_on=("clip_vit_l14_openai",),
        batched=False,
        gpu=False,
    ),
    Implementation(
        "nsfw",
        "open_nsfw",
        "curation.nsfw:OpenNsfw",
        (packaged.OPEN_NSFW,),
        "Yahoo's Open-NSFW (ResNet-50, 2016)",
        gpu=False,
    ),
    Implementation(
        "caption_spatial",
        "coca_vit_l14",
        "curation.captions:CocaCaptioner",
        (HubWeights("laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", _CLIP_FILES, 4 * 638_450_177, "MIT"),),
        "CoCa ViT-L/14, fine-tuned on MS-COCO, through open_clip",
        options={"architecture": "coca_ViT-L-14"},
        local_files=_CLIP_LOCAL,
    ),
    Implementation(
        "caption_temporal",
        "videoblip_opt_2_7b",
        "curation.videoblip:VideoBlipCaptioner",
        (HubWeights("kpyu/video-blip-opt-2.7b-ego4d", _TRANSFORMERS_FILES, 15_500_000_000, "MIT"),),
        "VideoBLIP on OPT-2.7B, trained on Ego4D",
        local_files=_MODEL_FILES,
    ),
    Implementation(
        "caption_temporal",
        "videoblip_flan_t5_xl",
        "curation.videoblip:VideoBlipCaptioner",
        (HubWeights("kpyu/video-blip-flan-t5-xl-ego4d", _TRANSFORMERS_FILES, 15_800_000_000, "MIT"),),
        "VideoBLIP on Flan-T5-XL, trained on Ego4D",
        local_files=_MODEL_FILES,
    ),
    Implementation(
        "caption_merge",
        "smollm2_135m",
        "curation.caption_merge:CaptionMerger",
        (packaged.SMOLLM2,),
        "SmolLM2-135M-Instruct, 4 bit: a weak writer, allowed no content word of its own",
        options={"new_words": 0.0},
    ),
    Implementation(
        "caption_merge",
        "qwen2_5_1_5b",
        "curation.caption_merge:CaptionMerger",
        (HubWeights("Qwen/Qwen2.5-1.5B-Instruct", _TRANSFORMERS_FILES, 3_090_000_000, "Apache-2.0"),),
        "Qwen2.5-1.5B-Instruct (the paper names no model, only a lightweight one)",
        local_files=_MODEL_FILES,
    ),
)

IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {
    role: {each.name: each for each in _ALL if each.role == role} for role in ROLES
}

PROFILES: dict[str, dict[str, str]] = {
    "offline": {
        "text": "craft",
        "flow": "rife",
        "similarity": "conse",
        "aesthetic": "niqe",
        "nsfw": "open_nsfw",
        "caption_merge": "smollm2_135m",
    },
    "paper": {
        "text": "craft",
        "flow": "raft_large",
        "similarity": "clip_vit_l14_openai",
        "aesthetic": "laion_linear_vit_l14",
        "nsfw": "open_nsfw",
        "caption_spatial": "coca_vit_l14",
        "caption_temporal": "videoblip_opt_2_7b",
        "caption_merge": "qwen2_5_1_5b",
    },
}

NO_MODEL: dict[str, dict[str, str]] = {
    "offline": {
        "caption_spatial": "no package carries an image captioner; name an implementation and weights, or turn it off",
        "caption_temporal": "no package carries a video captioner; name an implementation and weights, or turn it off",
    },
    "paper": {},
}


_KEYS = ("implementation", "weights", "revision", "batch")


def choose(profile: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Choice]:
    """The choice for every role that the profile, or an override, has a model for.

    Args:
        profile: `offline` or `paper`; `off` has no models but those of the overrides.
        overrides: per role: `implementation` (a name from IMPLEMENTATIONS, or `off`), `weights` (a path that replaces
            the published ones), `revision` (of a hub repository), `batch` (items per call of the network).

    Raises:
        ValueError: an unknown profile, role, implementation or key; the message lists the known ones.
    """
    if profile not in PROFILES and profile != "off":
        raise ValueError(f"no profile is called {profile!r}; known: {', '.join(PROFILES)}")
    asked: dict[str, dict[str, Any]] = {
        role: {"implementation": name} for role, name in PROFILES.get(profile, {}).items()
    }
    for role, wanted in (overrides or {}).items():
        if role not in ROLES:
            raise ValueError(f"no role is called {role!r}; known: {', '.join(ROLES)}")
        for key in wanted:
            if key not in _KEYS:
                raise ValueError(f"{role}: unknown key {key!r}; known: {', '.join(_KEYS)}")
        asked[role] = {**asked.get(role, {}), **wanted}
        if "implementation" not in asked[role]:
            raise ValueError(
                f"{role}: profile {profile} has no model for it; name an implementation: "
                f"{', '.join(IMPLEMENTATIONS[role])}"
            )
    return {role: _choice(role, wanted) for role, wanted in asked.items() if wanted["implementation"] != "off"}


def _choice(role: str, wanted: Mapping[str, Any]) -> Choice:
    name = wanted["implementation"]
    if name not in IMPLEMENTATIONS[role]:
        raise ValueError(
            f"{role}: no implementation is called {name!r}; known: {', '.join(IMPLEMENTATIONS[role])}, off"
        )
    implementation = IMPLEMENTATIONS[role][name]
    chosen = implementation.weights
    if "weights" in wanted:
        chosen = (LocalWeights(wanted["weights"], implementation.local_files),)
    elif "revision" in wanted:
        if not any(isinstance(each, HubWeights) for each in chosen):
            raise ValueError(f"{role}: {name} does not come from the hub, so it has no revision")
        chosen = tuple(
            replace(each, revision=wanted["revision"]) if isinstance(each, HubWeights) else each for each in chosen
        )
    batch = wanted.get("batch")
    if batch is not None and not implementation.batched:
        raise ValueError(f"{role}: {name} has no batch")
    return Choice(implementation, chosen, batch)


def check(choices: Mapping[str, Choice]) -> list[Report]:
    """Look for every file of every choice, and compare checksums. Nothing is loaded or downloaded."""
    reports = []
    similarity = choices["similarity"].implementation.name if "similarity" in choices else "off"
    for role, choice in choices.items():
        found: list[Path | None] = []
        problems = []
        works_on = choice.implementation.works_on
        if works_on and similarity not in works_on:
            name, wanted = choice.implementation.name, " or ".join(works_on)
            problems.append(f"{role}: {name} reads the embeddings of {wanted}; models.roles.similarity is {similarity}")
        for each in choice.weights:
            try:
                found.append(each.path())
            except WeightsUnavailable as error:
                found.append(None)
                problems.append(f"{role}: {choice.implementation.name}: {error}{_way_out(choice, each)}")
        problem = "; ".join(problems) or None
        reports.append(Report(role, choice.implementation.name, choice.weights, tuple(found), problem))
    return reports


def _way_out(choice: Choice, each: Weights) -> str:
    if isinstance(each, PackagedWeights):
        return ""  # the message has its install command already
    if isinstance(each, LocalWeights):
        return f"; correct models.roles.{choice.role}"
    revision = f" --revision {each.revision}" if isinstance(each, HubWeights) and each.revision != "main" else ""
    return (
        f"; run: clipmill models pull --role {choice.role} --implementation {choice.implementation.name}{revision}, "
        f"or name a path (models.roles.{choice.role}.weights), or turn the role off"
    )


def load(choice: Choice, *, device: str = "cpu", **options: Any) -> Any:
    """Build the object that plays the role. See the class for its methods.

    Its `name`, which is recorded with every score, says which weights these are: packaged ones are known by the name of
    the implementation, all others add the commit on the hub, or the beginning of the file's SHA-256.

    Raises:
        WeightsUnavailable: a file is missing or is not the expected one.
    """
    implementation = choice.implementation
    module, name = implementation.loads.split(":")
    paths = [each.path() for each in choice.weights]
    make = getattr(importlib.import_module(module), name)
    arguments: dict[str, Any] = {**implementation.options, **options}
    if choice.batch is not None:
        arguments["batch"] = choice.batch
    versions = [
        each.version(path)
        for each, path in zip(choice.weights, paths, strict=True)
        if not isinstance(each, PackagedWeights)
    ]
    if versions:
        arguments["name"] = f"{implementation.name}@{versions[0]}"
    return make(weights=paths, device=device if implementation.gpu else "cpu", **arguments)
