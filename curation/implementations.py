"""What can play each role: role -> implementation -> weights, and which one each profile takes.

A *role* is what a stage needs (a learned flow, an image-text similarity); an *implementation* is a class that plays it;
its *weights* are a file of an installed package, a published file, a repository of the hub, or a path that the user
names. Names say what a model is: nothing is called CLIP, RAFT, CoCa or VideoBLIP unless it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curation import weights as packaged
from curation.weights import PackagedWeights
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
