"""DeepSpeed's and Accelerate's own configs: taken over, completed, and refused where they contradict the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from forgepress.errors import ConfigError
from forgepress.tests.checked_run import config, report
from forgepress.trainer import preflight_engine
from forgepress.trainer.config import RunConfig
from forgepress.trainer.engine_accelerate import accelerated
from forgepress.trainer.engine_deepspeed import zero_of


def zero(own: Any = None, *, top: dict[str, Any] | None = None, **ours: Any) -> RunConfig:
    section = {**ours, **({"config": own} if own is not None else {})}
    stage = (
        ours.get("stage", (own or {}).get("zero_optimization", {}).get("stage", 2))
        if own is None or isinstance(own, dict)
        else 2
    )
    axis = "replicate" if stage == 0 else "shard"
    return config(parallel={"engine": "deepspeed", axis: 2, "deepspeed": section}, **(top or {}))


def test_what_deepspeed_is_told_follows_from_the_run() -> None:
    settings = zero_of(zero(stage=3, offload_optimizer=True, offload_parameters=True)).settings
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert settings["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert settings["train_micro_batch_size_per_gpu"] == 16
    assert settings["gradient_clipping"] == 0.0  # the run clips


def test_the_users_own_keys_go_through_and_a_file_is_read(tmp_path: Path) -> None:
    own = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 12345}, "train_batch_size": "auto"}
    (tmp_path / "ds.json").write_text(json.dumps(own))
    settings = zero_of(zero(str(tmp_path / "ds.json"))).settings
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["reduce_bucket_size"] == 12345


@pytest.mark.parametrize(
    ("own", "top", "said"),
    [
        ({"train_batch_size": 64}, {}, "train_batch_size is 64 there, but the run says 32"),
        (
            {"gradient_clipping": 1.0},
            {"optimizer": {"clip_norm": 0.5}},
            "gradient_clipping is 1.0 there, but the run says 0.5",
        ),
        ({"bf16": {"enabled": True}}, {}, "bf16.enabled is True there, but the run says False"),
        ({"optimizer": {"type": "SGD"}}, {}, "optimizer.type is 'SGD' there, but the run says 'adamw'"),
        (
            {"optimizer": {"params": {"lr": 0.1}}},
            {},
            "optimizer.params.lr is 0.1 there, but the run says 0.001",
        ),
        (
            {"gradient_accumulation_steps": 4},
            {},
            "gradient_accumulation_steps is 4 there, but the run says 1",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "has scheduler, which the run itself does"),
    ],
)
def test_a_disagreement_is_named_with_both_values(
    own: dict[str, Any], top: dict[str, Any], said: str
) -> None:
    problems = [
        p.message for p in report(2, parallel=zero(own).parallel.model_dump(mode="json"), **top).problems
    ]
    assert any(said in message for message in problems), problems


def test_the_same_words_are_no_disagreement() -> None:
    own = {
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "train_batch_size": 32,
        "bf16": {"enabled": "auto"},
    }
    assert not report(2, parallel=zero(own).parallel.model_dump(mode="json")).problems


def test_two_stages_are_a_disagreement() -> None:
    with pytest.raises(ConfigError, match=r"given 2, but zero_optimization\.stage is 3"):
        zero_of(zero({"zero_optimization": {"stage": 3}}, stage=2))


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"engine": "deepspeed", "tensor": 2}, "engine deepspeed has replicate and shard alone"),
        ({"engine": "deepspeed", "replicate": 2}, "given 2 with ZeRO stage 2; use shard"),
        (
            {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 0}},
            "which divides nothing; use replicate",
        ),
        (
            {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 1, "offload_parameters": True}},
            "want stage 3",
        ),
        ({"shard": 2, "deepspeed": {"stage": 1}}, "given with engine: native"),
        (
            {"engine": "deepspeed", "shard": 2, "deepspeed": {"config": "nowhere.json"}},
            "nowhere.json cannot be read",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_refused_at_check(parallel: dict[str, Any], said: str) -> None:
    problems = [problem.message for problem in report(2, parallel=parallel).problems]
    assert any(said in message for message in problems), problems


def accelerate(own: dict[str, Any], **parallel: Any) -> RunConfig:
    return config(parallel={"engine": "accelerate", **parallel, "accelerate": {"config": own}})


def test_an_accelerate_config_chooses_the_wrapping() -> None:
    assert accelerated(accelerate({"distributed_type": "MULTI_GPU"}, replicate=2)).fsdp is None
    own = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Block",
    }
    asked = accelerated(accelerate({"distributed_type": "FSDP", "fsdp_config": own}, shard=2))
    assert asked.fsdp is not None
    assert asked.fsdp["auto_wrap_policy"] == "transformer_based_wrap"
    assert asked.fsdp["transformer_cls_names_to_wrap"] == ["Block"]
    own = {"zero_stage": 3, "offload_optimizer_device": "cpu"}
    asked = accelerated(accelerate({"distributed_type": "DEEPSPEED", "deepspeed_config": own}, shard=2))
    assert asked.deepspeed == {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "fsdp_version is 1; want 2"),
        ({"distributed_type": "MULTI_GPU"}, "given 2 with Accelerate's MULTI_GPU"),
        ({"mixed_precision": "bf16"}, "mixed_precision is 'bf16' there, but precision is 'fp32'"),
        ({"num_processes": 8}, "num_processes is 8 there, but the mesh has 2"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "has dynamo_config"),
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type is MEGATRON_LM"),
    ],
)
def test_an_accelerate_config_that_contradicts_the_run_is_refused_at_check(
    own: dict[str, Any], said: str
) -> None:
    parallel = accelerate(own, shard=2).parallel.model_dump(mode="json")
    problems = [problem.message for problem in report(2, parallel=parallel).problems]
    assert any(said in message for message in problems), problems


@pytest.mark.parametrize("computes", [True, False])
def test_fp16_that_deepspeed_would_refuse_on_this_processor_is_refused_before(
    computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_engine, "computes_fp16", lambda: computes)
    parallel = {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 2}}
    said = [p.message for p in report(2, parallel=parallel, precision="fp16").problems]
    assert any("DeepSpeed refuses it" in message for message in said) is not computes
