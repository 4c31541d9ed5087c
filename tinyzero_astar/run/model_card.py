"""The model card of a checkpoint, README.md, with what was trained on what, from where to where, with which command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyzero_astar import __version__
from tinyzero_astar.config import Config
from tinyzero_astar.config_json import FREE_ON_RESUME, differences
from tinyzero_astar.data.tasks import TASKS
from tinyzero_astar.model.model_folder import EMBEDDED
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.launching import num_machines, train_command

CARD = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_ACCURACY, _PROBLEMS = "eval/greedy_accuracy", "eval/num_problems"
# of this machine, or written by the run itself
_UNTOLD = {*FREE_ON_RESUME, "data.task_sha256"} - {"train.num_iterations"}

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- reinforcement-learning
- tinyzero-astar
{tag}---

# {title}

{base_name} trained by TinyZero A\\*PO {version} on {task}. The training is pure reinforcement learning, without
supervised fine-tuning. A verifier judged every completion, and nothing else told the model what is right.

| | |
| --- | --- |
| iteration | {iteration} of {num_iterations} |
| problems in an iteration | {problems} |
| completions of a problem, on average | {rollouts:g} |
| algorithm, search | {algorithm}, {mode} |
| seed | {seed} |

{results}

This command starts a run with the same settings:

```bash
{command}
```

{notes}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={room})[0]))
```

`trainer.json` and `trainer.safetensors` hold the value model and what a run needs to continue. transformers does not
read them.
"""


def model_card(config: Config, iteration: int, evaluations: Sequence[Mapping[str, Any]], prompt: str) -> str:
    """The card's text.

    Args:
        config: of the run.
        iteration: of the checkpoint.
        evaluations: records of iterations, of which those that were evaluated count.
        prompt: an example, as the model is given it.
    """
    name = shown(config.model.model_name)
    is_on_hub = _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()
    return _CARD.format(
        base=f"base_model: {name}\n" if is_on_hub else "",
        tag=f"- {config.data.task}\n" if config.data.task in TASKS else "",
        title=f"{name}, trained on {shown(config.data.task)}",
        base_name="The base model of the package," if name == EMBEDDED else f"{name},",
        task=_task(config),
        version=__version__,
        iteration=iteration,
        num_iterations=config.train.num_iterations,
        problems=config.train.problems_per_iteration,
        rollouts=config.search.num_rollouts_per_problem,
        algorithm=config.train.algorithm,
        mode=config.search.mode,
        seed=config.run.seed,
        results=_results(evaluations, iteration),
        command=train_command(options_of(config) or ["--config", "tiny"]),
        notes=" ".join(_notes(config)),
        prompt=json.dumps(prompt, ensure_ascii=False),
        room=config.search.max_search_depth,
    )


def shown(name: str) -> str:
    """A name without the folder of this machine that it lies in."""
    return Path(name).name if Path(name).is_absolute() else name


def _notes(config: Config) -> Iterator[str]:
    """What the command does not say."""
    if num_machines() > 1:
        yield "It is given on each machine, where HOST is one of them."
    told = {
        f"{section}.{key}": value for section, keys in dataclasses.asdict(config).items() for key, value in keys.items()
    }
    hidden = [f"`--{name.replace('_', '-')}`" for name, x in told.items() if isinstance(x, str) and shown(x) != x]
    if hidden:
        yield f"The folder on the machine that trained it is left out of {' and '.join(hidden)}."
    yield (
        "If the run was continued with another `--train.num-iterations`, it had other learning rates before that than"
        " this command gives. `processes.jsonl` in the folder of the run lists the commands that were given."
    )
    if config.model.lora_rank:
        yield (
            f"Adapters of rank {config.model.lora_rank} (LoRA) were trained. They are merged into `model.safetensors`,"
            " so neither peft nor the base model is needed to use it."
        )


def _task(config: Config) -> str:
    data = config.data
    if data.task != "multiplication":
        return f"the task {shown(data.task)}"
    first = (data.min_digits, data.max_digits)
    second = (data.second_min_digits or first[0], data.second_max_digits or first[1])
    told = [f"{low}" if low == high else f"{low} to {high}" for low, high in (first, second)]
    if first == second:
        return f"products of two numbers of {told[0]} digits"
    return f"products of a number of {told[0]} digits and one of {told[1]} digits"


def _results(evaluations: Sequence[Mapping[str, Any]], iteration: int) -> str:
    """The first and the last evaluation up to the checkpoint."""
    known = [row for row in evaluations if row["iteration"] <= iteration and row.get(_ACCURACY) is not None]
    if not known:
        return "No evaluation of this run is recorded."
    chosen = known if len(known) == 1 else [known[0], known[-1]]
    rows = [
        f"| {row['iteration']} | {100 * row[_ACCURACY]:.1f} % [{100 * row[f'{_ACCURACY}_low']:.1f},"
        f" {100 * row[f'{_ACCURACY}_high']:.1f}] | {row[_PROBLEMS]} |"
        for row in chosen
    ]
    head = "| iteration | greedy accuracy, 95 % interval | held-out problems |\n| --- | --- | --- |"
    return "\n".join([head, *rows])


def options_of(config: Config) -> list[str]:
    """The shortest options of train.py that give a configuration, but for what belongs to this machine."""

    def told(preset: str) -> list[str]:
        return [name for name in differences(config, PRESETS[preset]) if name not in _UNTOLD]

    preset = min(PRESETS, key=lambda name: len(told(name)))
    options = [] if preset == "tiny" else ["--config", preset]
    sections = dataclasses.asdict(config)
    for name in told(preset):
        section, key = name.split(".")
        value, option = sections[section][key], key.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{section}.{'' if value else 'no-'}{option}")
        else:
            options += [f"--{section}.{option}", shown(value) if isinstance(value, str) else str(value)]
    return options
