"""The architectures that vLLM lists, with and without LoRA, as its own code claims.

Read from the registry of models of that version: an architecture has LoRA if its class is a
SupportsLoRA. Nothing here was run.
"""

from __future__ import annotations

from pipelines.model.support_table import Cell

VLLM_VERSION = "0.24.0"


def vllm_cell(architecture: str) -> Cell:
    """The cell of an architecture, by the name of its class, such as LlamaForCausalLM.

    Some publishers write a class in other capitals than transformers.
    """
    if architecture.lower() in map(str.lower, _WITH_LORA):
        return Cell("not run", "listed with LoRA")
    listed = architecture.lower() in map(str.lower, _WITHOUT_LORA)
    return Cell("not run", "listed without LoRA" if listed else "not listed")


_WITH_LORA = frozenset(
    """
    AXK1ForCausalLM AfmoeForCausalLM ApertusForCausalLM AquilaForCausalLM AquilaModel
    ArceeForCausalLM AudioFlamingo3ForConditionalGeneration BagelForConditionalGeneration
    BaiChuanForCausalLM BaichuanForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM
    Blip2ForConditionalGeneration ChatGLMForConditionalGeneration ChatGLMModel Cheers
    CheersForConditionalGeneration Cohere2ForCausalLM CohereForCausalLM
    Cosmos3ForConditionalGeneration CwmForCausalLM DeciLMForCausalLM DeepseekForCausalLM
    DeepseekOCR2ForCausalLM DeepseekOCRForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM
    DeepseekV3ForCausalLM DotsOCRForCausalLM Eagle2_5_VLForConditionalGeneration
    Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5_VLMoeForConditionalGeneration
    Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration ExaoneForCausalLM ExaoneMoEForCausalLM
    Fairseq2LlamaForCausalLM FalconH1ForCausalLM FlexOlmoForCausalLM GLM4VForCausalLM
    GPTBigCodeForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration
    Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration
    GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM
    Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration
    GlmAsrForConditionalGeneration GlmForCausalLM GlmMoeDsaForCausalLM
    GlmOcrForConditionalGeneration GptOssForCausalLM Granite4VisionForConditionalGeneration
    GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
    GraniteMoeSharedForCausalLM GraniteSpeechForConditionalGeneration
    GraniteSpeechPlusForConditionalGeneration GritLM Grok1ForCausalLM Grok1ModelForCausalLM
    H2OVLChatModel HYV3ForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
    HunYuanVLForConditionalGeneration HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    Idefics3ForConditionalGeneration InternLM2ForCausalLM InternLM3ForCausalLM
    InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    InternS2PreviewForConditionalGeneration InternVLChatModel InternVLForConditionalGeneration
    IsaacForConditionalGeneration Jais2ForCausalLM JambaForCausalLM KeyeForConditionalGeneration
    KeyeVL1_5ForConditionalGeneration LLaMAForCausalLM LagunaForCausalLM Lfm2ForCausalLM
    Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration LightOnOCRForConditionalGeneration
    Llama4ForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM Llama_Nemotron_Nano_VL
    LlavaForConditionalGeneration LongcatFlashForCausalLM MantisForConditionalGeneration
    MellumForCausalLM MiMoForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMO MiniCPMV
    MiniMaxM2ForCausalLM Ministral3ForCausalLM Mistral3ForConditionalGeneration
    MistralForCausalLM MistralLarge3ForCausalLM MixtralForCausalLM
    Molmo2ForConditionalGeneration MolmoForCausalLM MossAudioModel
    MusicFlamingoForConditionalGeneration NVLM_D NemotronForCausalLM NemotronHForCausalLM
    NemotronHPuzzleForCausalLM OPTForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM
    OlmoHybridForCausalLM OlmoeForCausalLM OpenCUAForConditionalGeneration
    OpenPanguVLForConditionalGeneration OuroForCausalLM PaliGemmaForConditionalGeneration
    PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM
    Param2MoEForCausalLM Phi3ForCausalLM Phi4MMForCausalLM PhiForCausalLM PhiMoEForCausalLM
    PixtralForConditionalGeneration Plamo2ForCausalLM Plamo3ForCausalLM
    QianfanOCRForConditionalGeneration Qwen2ForCausalLM Qwen2MoeForCausalLM
    Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel
    Qwen2_5_VLForConditionalGeneration Qwen3ASRForConditionalGeneration
    Qwen3ASRRealtimeGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration Rnj1ForCausalLM
    SarvamMLAForCausalLM SarvamMoEForCausalLM SeedOssForCausalLM SmolVLMForConditionalGeneration
    SolarForCausalLM Tarsier2ForConditionalGeneration TeleChat2ForCausalLM TeleChat3ForCausalLM
    TeleChatForCausalLM TeleFLMForCausalLM UltravoxModel VoxtralForConditionalGeneration
    VoxtralRealtimeGeneration WhisperForConditionalGeneration
    """.split()
)

_WITHOUT_LORA = frozenset(
    """
    ArcticForCausalLM AriaForConditionalGeneration AyaVisionForConditionalGeneration
    BailingMoeV2_5ForCausalLM BeeForConditionalGeneration BloomForCausalLM
    ChameleonForConditionalGeneration Cohere2MoeForCausalLM
    Cohere2VisionForConditionalGeneration CohereAsrForConditionalGeneration DbrxForCausalLM
    DeepseekV4ForCausalLM DeepseekVLV2ForCausalLM DiffusionGemmaForBlockDiffusion
    FalconForCausalLM FalconMambaForCausalLM FireRedASR2ForConditionalGeneration
    FireRedLIDForConditionalGeneration FunASRForConditionalGeneration
    FunAudioChatForConditionalGeneration FuyuForCausalLM GPT2LMHeadModel GPTJForCausalLM
    GPTNeoXForCausalLM Gemma3nForCausalLM Gemma3nForConditionalGeneration HCXVisionForCausalLM
    HCXVisionV2ForCausalLM HfMoondream HrmTextForCausalLM IQuestLoopCoderForCausalLM
    KananaVForConditionalGeneration KimiK25ForConditionalGeneration KimiLinearForCausalLM
    KimiVLForConditionalGeneration LlavaNextForConditionalGeneration
    LlavaNextVideoForConditionalGeneration LlavaOnevisionForConditionalGeneration MPTForCausalLM
    Mamba2ForCausalLM MambaForCausalLM MiDashengLMModel MiMoV2FlashForCausalLM MiMoV2ForCausalLM
    MiMoV2OmniForCausalLM MiniCPMV4_6ForConditionalGeneration MiniMaxM3SparseForCausalLM
    MiniMaxM3SparseForConditionalGeneration Moondream3ForCausalLM MoonshotKimiaForCausalLM
    MptForCausalLM NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2
    NemotronH_Super_Omni_Reasoning_V3 NemotronParseForConditionalGeneration
    OpenVLAForActionPrediction OrionForCausalLM Ovis Ovis2_5 Ovis2_6ForCausalLM
    Ovis2_6_MoeForCausalLM PaddleOCRVLForConditionalGeneration PersimmonForCausalLM
    Phi3VForCausalLM Phi4ForCausalLMV Qwen2AudioForConditionalGeneration
    Qwen3OmniMoeForConditionalGeneration RForConditionalGeneration RWForCausalLM
    SkyworkR1VChatModel StableLMEpochForCausalLM StableLmForCausalLM Starcoder2ForCausalLM
    Step1ForCausalLM Step3TextForCausalLM Step3VLForConditionalGeneration Step3p5ForCausalLM
    Step3p7ForConditionalGeneration StepVLForConditionalGeneration
    TarsierForConditionalGeneration Zamba2ForCausalLM
    """.split()
)
