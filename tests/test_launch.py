"""Every launch file is understood by the installed accelerate, down to the keys it would silently ignore."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

LAUNCH = Path(__file__).parent.parent / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))
KINDS = {
    "single": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def launch_arguments(path: Path) -> argparse.Namespace:
    """What `accelerate launch` makes of a file; port 0 asks for any free port."""
    given = ["--config_file", str(path), "--num_processes", "2", "--main_process_port", "0", "script.py"]
    arguments: argparse.Namespace
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    # The launcher sets it after this step, for DeepSpeed's JSON files only; these files use none.
    arguments.deepspeed_fields_from_accelerate_config = ""
    return arguments


def test_every_promised_file_is_there() -> None:
    assert {path.stem for path in FILES} == set(KINDS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_loads_through_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[path.stem]
    # -1: not given. A number written here would leave GPUs idle, or ask for more than there are.
    assert config.num_processes == (1 if path.stem == "single" else -1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nested_keys_are_options_of_the_launcher(path: Path) -> None:
    """Accelerate sets any nested key it finds, misspelt or not, and reads only those that it knows."""
    known = {action.dest for action in launch_command_parser()._actions}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    nested = {key for value in content.values() if isinstance(value, dict) for key in value}
    assert nested <= known


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text((LAUNCH / "ddp.yaml").read_text(encoding="utf-8") + "num_gpus: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_gpus"):
        load_config_from_file(str(changed))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_opens_with_one_line_about_itself(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_precision_is_left_to_the_recipe(name: str) -> None:
    arguments = launch_arguments(LAUNCH / f"{name}.yaml")
    environment = (
        prepare_deepspeed_cmd_env(arguments)[1]
        if name.startswith("zero")
        else prepare_multi_gpu_env(arguments)
    )
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


def test_fsdp2_saves_whole_weights_and_loads_them_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare_multi_gpu_env(launch_arguments(LAUNCH / "fsdp2.yaml"))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False
    assert plugin.auto_wrap_policy is not None


@pytest.mark.parametrize(("name", "stage"), [("zero2", "2"), ("zero3", "3")])
def test_zero_stage_and_offload(name: str, stage: str) -> None:
    _, environment = prepare_deepspeed_cmd_env(launch_arguments(LAUNCH / f"{name}.yaml"))
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == "none"
    if name == "zero3":
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


def test_slurm_script_is_valid_bash() -> None:
    checked = subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sbatch")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
