"""Small random pipelines of diffusers, every part of the real class, with tokenizers that know a few sentences."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from randomized import randomized
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.utils import logging

logging.disable_progress_bar()

SENTENCES = (
    "a small red cat sits on a blue mat",
    "two green birds fly over the old house",
    "a yellow dog and a black horse in the snow",
    "the white boat on a dark sea at night",
)


def tokenizer(length):
    """Words, with marks at both ends; `length` is what the tokenizer says that its encoder takes."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **names)


def clip(width=16, projected=False, length=16):
    settings = {"vocab_size": 64, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "max_position_embeddings": length, "projection_dim": width}
    config = CLIPTextConfig(**settings, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return randomized(CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config))


def t5(width=16):
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return randomized(T5EncoderModel(config))


def gemma(width=16):
    settings = {"vocab_size": 64, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 1}
    return randomized(Gemma2Model(Gemma2Config(**settings, num_attention_heads=2, num_key_value_heads=1, head_dim=8)))


def autoencoder_kl(**options):
    settings = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    settings |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return randomized(AutoencoderKL(**settings | options))


def autoencoder_dc(**options):
    settings = {"latent_channels": 4, "attention_head_dim": 2, "scaling_factor": 0.4}
    for side in ("encoder", "decoder"):
        settings |= {f"{side}_block_types": ("ResBlock", "EfficientViTBlock"), f"{side}_block_out_channels": (8, 8)}
        settings |= {f"{side}_qkv_multiscales": ((), (5,)), f"{side}_layers_per_block": (1, 1)}
    settings |= {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return randomized(AutoencoderDC(**settings | options))


def autoencoder_tiny(**options):
    settings = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    settings |= {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1), "latent_channels": 4}
    return randomized(AutoencoderTiny(**settings | options))


def sana(kind=SanaPipeline, scheduler=None, vae=None, **options):
    net = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=8,
        **options,
    )
    return kind(
        tokenizer=tokenizer(300),
        text_encoder=gemma(),
        vae=vae or autoencoder_dc(),
        transformer=randomized(net),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(),
    )


def sana_sprint():
    return sana(SanaSprintPipeline, SCMScheduler(), guidance_embeds=True, qk_norm="rms_norm_across_heads")


def pixart(kind=PixArtSigmaPipeline):
    net = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        cross_attention_dim=8,
        num_layers=1,
        in_channels=4,
        out_channels=8,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        use_additional_conditions=False,
    )
    return kind(
        tokenizer=tokenizer(300),
        text_encoder=t5(),
        vae=autoencoder_kl(),
        transformer=randomized(net),
        scheduler=DPMSolverMultistepScheduler(),
    )


def pixart_alpha():
    return pixart(PixArtAlphaPipeline)


def stable_diffusion():
    return StableDiffusionPipeline(
        vae=autoencoder_kl(),
        text_encoder=clip(),
        tokenizer=tokenizer(16),
        unet=randomized(unet()),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unet(**options):
    settings = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    settings |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 16}
    settings |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}
    return UNet2DConditionModel(**settings | options)


def stable_diffusion_xl(zeros=True, vae=None):
    time_ids = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    net = unet(cross_attention_dim=32, projection_class_embeddings_input_dim=6 * 4 + 16, **time_ids)
    return StableDiffusionXLPipeline(
        vae=vae or autoencoder_kl(),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=tokenizer(16),
        tokenizer_2=tokenizer(16),
        unet=randomized(net),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def stable_diffusion_3(with_t5=True):
    net = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
    )
    return StableDiffusion3Pipeline(
        transformer=randomized(net),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder_kl(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(projected=True),
        tokenizer=tokenizer(16),
        text_encoder_2=clip(projected=True),
        tokenizer_2=tokenizer(16),
        text_encoder_3=t5(32) if with_t5 else None,
        tokenizer_3=tokenizer(256) if with_t5 else None,
    )


def flux(**options):
    net = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
        **options,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder_kl(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip(),
        tokenizer=tokenizer(16),
        text_encoder_2=t5(32),
        tokenizer_2=tokenizer(512),
        transformer=randomized(net),
    )


def dit(vae=None, **options):
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1}
    settings |= {"sample_size": 8, "num_embeds_ada_norm": 2, "patch_size": 2}
    net = randomized(DiTTransformer2DModel(**settings | options))
    return DiTPipeline(net, vae or autoencoder_kl(), DDIMScheduler(clip_sample=False))


def ddpm(**options):
    settings = {"sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8)}
    settings |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(**settings | {"layers_per_block": 1, "norm_num_groups": 4} | options)
    return DDPMPipeline(randomized(net), DDPMScheduler())


def saved(pipeline, root):
    """The folder of a pipeline."""
    with torch.no_grad():
        pipeline.save_pretrained(root)
    return root
