"""The `toolkit` command. Each verb imports only what it needs: check, config and rules answer without torch."""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from toolkit.cli import check, config, new, plan
from toolkit.cli.argument_types import count, file_path, quantity
from toolkit.cli.output import exit_code_of, leave
from toolkit.errors import InputError, nearest
from toolkit.parity.problem import LEAST_STEPS
from toolkit.recipe.synonyms import choice_meant


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints have our form."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = choice_meant(choice[1], choice[2].replace("'", "").split(", ")) if choice else ""
        raise InputError(
            f"{self.prog}: {message}{hint}",
            expected=" ".join(self.format_usage().split()),
            do=f"see `{self.prog} --help`",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Without `argv` this is the command itself, and ends the process."""
    code = exit_code_of(lambda: _run(sys.argv[1:] if argv is None else argv))
    return leave(code) if argv is None else code


def _run(argv: Sequence[str]) -> int:
    options, others = parser().parse_known_args([_dashes(word) for word in argv])
    if others and not hasattr(options, "fields"):
        _refuse(others, options.parser)
    typed = {_dashes(word): word for word in argv}  # what is said of a field's flag names it as it was written
    options.fields = [typed.get(word, word) for word in others]
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _refuse(words: Sequence[str], verb: argparse.ArgumentParser) -> NoReturn:
    """Let `verb` refuse the `words` that it does not know: argparse would speak for the whole command."""
    flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    known = [name for action in verb._actions for name in action.option_strings if name.startswith("--")]
    near = nearest(flag.lstrip("-"), [name[2:] for name in known]) if flag else []
    hint = f" (did you mean --{near[0]}?)" if near else ""
    verb.error(f"unknown flag {flag}{hint}" if flag else f"unexpected {' '.join(words)!r}")


def _dashes(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word


def parser() -> argparse.ArgumentParser:
    """Of the whole command."""
    made = _Parser(
        prog="toolkit",
        description="What surrounds a run. A run itself is started from its recipe: deepspeed -q --num_gpus 2 recipes/NAME.py; with --rehearse it is tried first, scaled down, on this host's CPU.",
        epilog="Each verb has a --help with examples. Exit codes: 0 good, 1 our fault or the disk's, 2 bad input, 3 curves differ.",
    )
    verbs = made.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    for name, (summary, add, examples) in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="examples:\n" + "\n".join(f"  toolkit {name} {example}".rstrip() for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(verb)
        verb.set_defaults(parser=verb)
    return made


def _add_rules(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="one JSON list")
    verb.set_defaults(run=_rules)


def _rules(options: argparse.Namespace) -> int:
    from toolkit.ds_config.rules import RULES

    if options.json:
        listed = [
            {"id": rule.id, "severity": rule.severity, "looks_at": rule.looks_at, "why": rule.why} for rule in RULES
        ]
        print(json.dumps(listed, indent=2))
        return 0
    for rule in RULES:
        print(f"{rule.id} ({rule.severity})\n    looks at: {rule.looks_at}\n    why: {rule.why}")
    return 0


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=file_path, help="a run folder, or one of its checkpoints")
    verb.add_argument("out", type=file_path, help="folder to write")
    verb.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16", help="default: bf16")
    verb.add_argument("--merge", action="store_true", help="adapters: add them to the weights of their base model")
    verb.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from toolkit.checkpoint.export import export

    used = export(options.source, options.out, options.dtype, merge=options.merge)
    print(f"{options.out}: {options.dtype} weights of {used}")
    return 0


def _add_parity(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "recipe", type=file_path, help="a recipe file; its architecture is scaled down, no weight is read"
    )
    verb.add_argument(
        "--strategies", type=_words, default=[], help="comma-separated names, or all (default: one of each kind)"
    )
    verb.add_argument("--steps", type=_count_of_steps, default=6, help="optimizer steps, at least 3 (default: 6)")
    verb.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: fp32")
    verb.add_argument(
        "--architecture", help="compare this model_type of transformers in the place of the recipe's model"
    )
    verb.add_argument("--timeout-s", type=float, default=180.0, help="seconds a strategy may take (default: 180)")
    verb.add_argument("--json", action="store_true", help="the report as one JSON object")
    verb.set_defaults(run=_parity)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _count_of_steps(text: str) -> int:
    """Room for the warm-up and one step after it."""
    if count(text) < LEAST_STEPS:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {LEAST_STEPS}")
    return int(text)


def _parity(options: argparse.Namespace) -> int:
    from toolkit.cli.parity import parity

    return parity(
        options.recipe,
        options.strategies,
        steps=options.steps,
        dtype=options.dtype,
        architecture=options.architecture,
        timeout_s=options.timeout_s,
        as_json=options.json,
    )


def _add_fetch(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", nargs="*", metavar="NAME")
    verb.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    from toolkit.cli.fetch import fetch

    return fetch(options.names)


def _add_doctor(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--build",
        action="store_true",
        help="first compile DeepSpeed's CPU kernels, a minute each at first use otherwise",
    )
    verb.add_argument(
        "--gpu",
        action="store_true",
        help="also measure each GPU, some seconds: products and copies against its data sheet, throttling, memory errors",
    )
    verb.add_argument("--hostfile", type=file_path, help="also ask every host of this file over ssh, and compare them")
    verb.add_argument("--ssh-port", type=count, help="as for `deepspeed --ssh_port`")
    verb.add_argument(
        "--write-env",
        action="store_true",
        help="write ./.deepspeed_env: what the hosts must have of this shell's variables",
    )
    verb.add_argument(
        "--nvme",
        type=file_path,
        metavar="DIR",
        help="also measure the disk of this folder, two seconds and 256 MiB at most: what offload to it would cost a step",
    )
    verb.add_argument(
        "--parameters",
        type=quantity,
        metavar="N",
        help="how many a run would train (7b, 350m): also whether their optimizer states fit the memory, or the --nvme disk",
    )
    verb.add_argument("--verbose", action="store_true", help="why each line matters, also where nothing is wrong")
    verb.add_argument("--json", action="store_true", help="the findings as one JSON list, the worst first")
    verb.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from toolkit.doctor.report import Wanted, doctor

    if options.build:
        from toolkit.doctor.check_builds import check_libaio
        from toolkit.engine.kernels import KERNELS, NVME_KERNELS, build

        say = functools.partial(print, file=sys.stderr if options.json else sys.stdout)
        build({**KERNELS, **(NVME_KERNELS if check_libaio().status == "ok" else {})}, say)
    wanted = Wanted(
        options.hostfile,
        ssh_port=options.ssh_port,
        write_env=options.write_env,
        gpu=options.gpu,
        nvme=options.nvme,
        parameters=options.parameters,
    )
    return doctor(sys.stdout, wanted, verbose=options.verbose, as_json=options.json)


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], list[str]]] = {
    "new": (new.SUMMARY, new.add_flags, new.EXAMPLES),
    "check": (check.SUMMARY, check.add_flags, check.EXAMPLES),
    "plan": (plan.SUMMARY, plan.add_flags, plan.EXAMPLES),
    "config": (config.SUMMARY, config.add_flags, config.EXAMPLES),
    "rules": ("list every rule that `check` and each start apply", _add_rules, ["", "--json"]),
    "export": (
        "write a run or checkpoint as a Hugging Face directory",
        _add_export,
        [
            "runs/NAME out                                 the last checkpoint of a run, in bf16",
            "runs/NAME/checkpoints/step-00000010 out --dtype fp32",
        ],
    ),
    "parity": (
        "compare a recipe's curves, scaled down, under several strategies (exit 3: they differ)",
        _add_parity,
        [
            "recipes/NAME.py                               one strategy of each kind against plain PyTorch",
            "recipes/NAME.py --strategies zero3,pp2_tp2    these two",
            "recipes/NAME.py --strategies all --dtype bf16",
            "recipes/NAME.py --architecture olmoe          another kind of model under the same recipe",
        ],
    ),
    "fetch": (
        "put a checkpoint or data set into the cache; without a name, list them",
        _add_fetch,
        ["", "smollm2-135m-instruct python-docstrings"],
    ),
    "doctor": (
        "check this machine for what a run needs: each finding with why it matters and the command that mends it",
        _add_doctor,
        [
            "",
            "--build                                       and compile what the first offloaded run would",
            "--hostfile hostfile                           and every host of a cluster",
            "--gpu                                         and what each GPU really does, where there is one",
            "--nvme /mnt/nvme --parameters 7b              and what offload of so many parameters to this disk costs",
            "--json                                        for a program: what has to be repaired comes first",
        ],
    ),
}
"""Name -> one line, what adds its flags, and examples."""
