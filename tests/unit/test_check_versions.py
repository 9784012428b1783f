"""Packages that do not fit each other: each test has its own installed packages, made of the files that pip writes."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from toolkit.doctor import check_versions
from toolkit.doctor.finding import Finding
from toolkit.doctor.known_clashes import CLASHES, clashes


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which packages are installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, name: str, version: str, *requires: str, extras: tuple[str, ...] = ()) -> Path:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Provides-Extra: {extra}" for extra in extras)]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    return folder


def requirements() -> list[tuple[str, str, str]]:
    return [(one.status, one.found, one.fix) for one in check_versions.check_requirements()]


def test_this_environment_is_in_order() -> None:
    findings = [*check_versions.check_requirements(), *check_versions.check_clashes()]
    assert [finding.status for finding in findings] == ["ok", "ok"], findings


def test_a_requirement_that_a_later_install_broke(site: Path) -> None:
    install(site, "toolkit", "0.1.0", "peft>=0.18")
    install(site, "peft", "0.18.0", "numpy>=1.17", "safetensors; python_version < '3'", "black; extra == 'dev'")
    install(site, "numpy", "1.16.0")
    assert requirements() == [
        ("warn", "peft asks for numpy>=1.17, 1.16.0 is there", "pip install 'numpy>=1.17'"),
    ]
    (finding,) = check_versions.check_requirements()
    assert "a later `pip install` may break what fitted" in finding.why


def test_a_requirement_that_is_missing(site: Path) -> None:
    install(site, "toolkit", "0.1.0", "datasets>=4")
    install(site, "datasets", "4.1.0", "dill<0.5,>=0.3")
    (state,) = requirements()
    assert state == (
        "fail",
        "datasets asks for dill<0.5,>=0.3, which is missing",
        "pip install 'dill<0.5,>=0.3'",
    )


def test_packages_of_an_extra_count_where_they_are_there(site: Path) -> None:
    extra = "liger-kernel>=0.8.5; extra == 'liger'"
    install(site, "toolkit", "0.1.0", extra, "pytest>=8; extra == 'dev'", extras=("liger", "dev"))
    assert requirements() == [("ok", "0 packages have the versions that they ask of each other", "")]
    install(site, "liger-kernel", "0.7.0")
    install(site, "pytest", "7.0")
    assert requirements() == [
        ("warn", "toolkit asks for liger-kernel>=0.8.5, 0.7.0 is there", "pip install 'liger-kernel>=0.8.5'")
    ]


def test_packages_that_no_run_imports_are_nobodys_business(site: Path) -> None:
    install(site, "toolkit", "0.1.0")
    install(site, "some-web-framework", "1.0", "numpy>=99")
    install(site, "numpy", "2.0")
    assert [status for status, *_ in requirements()] == ["ok"]


def test_odd_versions_and_lines_end_nothing(site: Path) -> None:
    install(site, "toolkit", "0.1.0", "torch>=2.9", "numpy>=1", "not a requirement !!")
    install(site, "torch", "2.13.0+cu130")
    install(site, "numpy", "1.0")
    (site / "numpy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: unknown\n")
    assert [status for status, *_ in requirements()] == ["ok"]
    assert [one.status for one in check_versions.check_clashes({"numpy": "unknown", "torch": "2.13.0+cu130"})] == ["ok"]


def test_many_faults_are_cut_short(site: Path) -> None:
    install(site, "toolkit", "0.1.0", *(f"part{number}>=1" for number in range(12)))
    states = requirements()
    assert len(states) == check_versions.MOST_NAMED + 1
    assert states[-1] == ("warn", "so do 4 more packages", "pip check, which lists them all")


def test_a_package_that_is_missing_altogether(site: Path) -> None:
    install(site, "toolkit", "0.1.0", "torch>=2.9", "deepspeed<0.20,>=0.19.8")
    by_name = {finding.check: finding for finding in check_versions.check_versions(site / "none")}
    assert (by_name["torch"].status, by_name["torch"].found) == ("fail", "not installed")
    assert by_name["torch"].fix == "pip install 'torch>=2.9'"
    install(site, "deepspeed", "0.17.0")
    by_name = {finding.check: finding for finding in check_versions.check_versions(site / "none")}
    assert by_name["deepspeed"].found == "0.17.0, which is outside <0.20,>=0.19.8"
    assert by_name["deepspeed"].fix == "pip install 'deepspeed<0.20,>=0.19.8'"


def test_a_tree_that_was_not_installed(site: Path) -> None:
    assert next(check_versions.check_versions(site / "none")).check == "python"
    assert [status for status, *_ in requirements()] == ["ok"]


def known(**installed: str) -> list[Finding]:
    return list(check_versions.check_clashes({name.replace("_", "-"): text for name, text in installed.items()}))


def test_versions_that_are_known_to_clash() -> None:
    (hybrid,) = known(peft="0.17.1", transformers="5.23.0")
    assert hybrid.status == "fail"
    assert hybrid.found == (
        "peft 0.17.1 beside transformers 5.23.0: peft imports HybridCache, which transformers 5 no longer has"
    )
    assert hybrid.fix == "pip install 'peft>=0.18'"
    assert hybrid.why == "each package alone is sound, so that nothing but the failure tells"
    (viewer,) = known(tensorboard="2.20.0", setuptools="84.2.1")
    assert viewer.status == "warn" and "missing pkg_resources" in viewer.found
    (fine,) = known(peft="0.18.0", transformers="5.23.0", tensorboard="2.21.0", setuptools="84.2.1")
    assert (fine.status, fine.found) == ("ok", "none among 4 packages")


@pytest.mark.parametrize(
    ("installed", "happens"),
    [
        ({"peft": "0.21.2", "torchao": "0.15.0"}, "peft raises ImportError"),
        ({"torchao": "0.18.0", "torch": "2.9.1+cu130"}, "torchao imports ScalingType"),
        ({"torchao": "0.17.0", "torch": "2.10.0"}, "leaves its compiled kernels out"),
        ({"torchao": "0.16.0", "torch": "2.9.1"}, "leaves its compiled kernels out"),
        ({"liger-kernel": "0.6.4", "transformers": "5.17.0"}, "parts that transformers 5 has moved"),
        ({"bitsandbytes": "0.45.5", "transformers": "5.17.0"}, "no model loads in 4 or 8 bits"),
        ({"bitsandbytes": "0.44.1", "triton": "3.4.0"}, "bitsandbytes imports triton.ops"),
        ({"accelerate": "1.0.1", "transformers": "5.17.0"}, "transformers takes it for not installed"),
        ({"deepspeed": "0.14.2", "numpy": "2.4.6"}, "DeepSpeed imports BUFSIZE"),
        ({"deepspeed": "0.14.0", "torch": "2.3.0"}, "torch's elastic agent"),
        ({"datasets": "2.14.5", "fsspec": "2023.10.0"}, "LocalFileSystem is not supported"),
        ({"wandb": "0.26.0", "protobuf": "6.32.0"}, "the import of wandb raises VersionError"),
        ({"pandas": "2.2.1", "numpy": "2.0.0"}, "pandas was compiled for numpy 1"),
        ({"torch": "2.9.1+cu128", "nvidia-cudnn-cu12": "9.10.2.21"}, "takes several times its memory"),
        ({"nvidia-nccl-cu13": "2.29.2"}, "collectives of NCCL 2.29.2 can hang, which 2.29.3 repaired"),
    ],
)
def test_every_kind_of_clash_is_seen(installed: dict[str, str], happens: str) -> None:
    (found,) = clashes(installed)
    assert happens in found[0].happens
    assert all(f"{name} {version}" in found[1] for name, version in installed.items())


def test_the_table_can_be_acted_on() -> None:
    for clash in CLASHES:
        assert all(Requirement(text).specifier for text in clash.versions)
        assert clash.fix.startswith("pip install ")


def test_a_file_that_was_built_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c105ErrorC2E')\n")
    folder = install(tmp_path, "flash_attn", "2.8.3")
    url = "https://example.com/flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp311-cp311-linux_x86_64.whl"
    (folder / "direct_url.json").write_text(f'{{"url": "{url}", "archive_info": {{}}}}')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = check_versions.check_compiled()
    assert (finding.check, finding.status) == ("flash-attn", "fail")
    assert finding.found.endswith("ImportError: undefined symbol: _ZN3c105ErrorC2E (built for torch 2.8)")
    assert finding.fix.startswith("pip uninstall flash-attn, or install the build that matches torch 2.")


def test_what_declares_to_fit_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.metadata.version("torch")
    public, _, build = torch.partition("+")
    (tmp_path / "torchvision.py").write_text("import os\nos.abort()\n")
    folder = install(tmp_path, "torchvision", f"0.28.0{'+' + build if build else ''}", f"torch=={public}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert list(check_versions.check_compiled()) == []
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0+other\nRequires-Dist: torch=={public}\n"
    )
    (other_build,) = check_versions.check_compiled()
    assert other_build.status == "fail"


def test_a_compiled_part_that_kills_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchaudio.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = check_versions.check_compiled()
    assert finding.found == "cannot be imported, which can break transformers too: signal 6"
