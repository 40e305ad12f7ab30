"""Replay: records of real runs (tests/records) on the real model, as they were made and changed.

Two servers on one CPU rank: bfloat16 here, float32 in a process of its own. First the rules, on made-up figures.
"""

import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from leftovers_of import assert_nothing_left, newest_run
from tokenizers import Tokenizer

from bench import tampering
from localai_clusters import checkpoint
from localai_clusters.checkpoint import Checkpoint, Completion
from localai_clusters.grading import replay_models
from localai_clusters.grading.replay import replay, replay_on, stage_for
from localai_clusters.grading.replay_record import Replayed, Stage, summed_up, why_not
from localai_clusters.grading.replay_rules import (
    AVERAGED_FROM,
    CONFIRMED,
    EXACT,
    NOT_REPLAYABLE,
    REFUTED,
    ROUNDED,
    Reason,
    Seen,
    Token,
    judge,
    judge_average,
    judge_ending,
    quoted,
    tolerance,
)
from localai_clusters.grading.replay_server import ServerGone, talk
from localai_clusters.launch.run import read_rank, runs_dir
from localai_clusters.models import BUILT_IN, find
from localai_clusters.plan import ServePlan
from localai_clusters.recording import record
from localai_clusters.server import serve

RECORDS = Path(__file__).parent / "records"
FLOAT32 = RECORDS / "cpu_2_cores_float32_tp1_tp2_pp2.json"
OTHER_STUDENT = RECORDS / "cpu_2_cores_float32_tp1_tp2_pp2_other_student.json"
SAMPLED = RECORDS / "cpu_2_cores_bfloat16_tp1_sampled.json"
BFLOAT16 = {
    "TP=1": RECORDS / "replay" / "cpu_2_cores_bfloat16_tp1.json",
    "TP=2": RECORDS / "cpu_2_cores_bfloat16_tp2.json",
    "PP=2": RECORDS / "cpu_2_cores_bfloat16_pp2.json",
}
ENDS = frozenset({7})
THE = 260  # " the"
OTHER_WEIGHTS = RECORDS / "replay" / "float32_other_weights_claimed.json"


# The rules


def answer(**changes) -> Completion:
    fields = {"run_id": "r1", "prompt_index": 0, "text": " a red fox", "token_ids": (1, 2, 3)}
    return Completion(**fields | {"logprobs": (-0.1, -0.2, -0.3), "max_tokens": 3, "finish_reason": "length"} | changes)


def made_up_seen(*gaps: float, **changes) -> Seen:
    """What a model would say that prefers another token by ``gaps`` nats and agrees with ``answer`` otherwise."""
    said = zip(answer().logprobs, gaps, strict=False)
    tokens = tuple(Token(f" w{place}", logprob, " better", logprob + gap) for place, (logprob, gap) in enumerate(said))
    fields = {"tokens": tokens, "text": " a red fox", "prompt_text": "Hello", "prompt_as_recorded": True}
    return Seen(**fields | changes)


def judged(completion: Completion, seen: Seen, limit=EXACT) -> list[Reason]:
    return list(judge("at", "answer 1", checkpoint.prompt("Hello"), completion, seen, limit, ENDS))


def test_only_float32_in_float32_is_held_to_the_narrow_tolerance():
    assert tolerance("float32", "float32") is EXACT
    for recorded, replayed in (("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float16"), ("?", "?")):
        assert tolerance(recorded, replayed) is ROUNDED
    for field in EXACT.__slots__:
        assert 0 < getattr(EXACT, field) < getattr(ROUNDED, field)


@pytest.mark.parametrize("limit", [EXACT, ROUNDED], ids=["exact", "rounded"])
def test_a_token_may_be_as_far_from_the_choice_as_rounding_explains_and_no_further(limit):
    assert judged(answer(), made_up_seen(0, 0.99 * limit.gap, 0), limit) == []
    (reason,) = judged(answer(), made_up_seen(0, 1.01 * limit.gap, 0), limit)
    assert (reason.outcome, reason.field) == (REFUTED, "at.token_ids[1]")
    assert 'token 2 of 3: recorded " w1", the model\'s choice is " better"' in reason.sentence


def test_a_gap_or_a_log_probability_that_is_not_a_number_is_refuted():
    assert [reason.field for reason in judged(answer(), made_up_seen(0, math.nan, 0))] == ["at.token_ids[1]"]
    tokens = (Token("a", math.nan, "a", math.nan), *made_up_seen(0, 0, 0).tokens[1:])
    assert {reason.field for reason in judged(answer(), made_up_seen(tokens=tokens))} >= {"at.token_ids[0]"}


def test_a_sampled_token_may_be_any_but_its_log_probability_may_not():
    seen = made_up_seen(0, 3.0, 0)
    assert judged(answer(temperature=0.7), seen) == []
    (reason,) = judged(answer(temperature=0.7, logprobs=(-0.1, -1.2, -0.3)), seen)
    assert "token 2 of 3: log probability -1.200 recorded, -0.200 replayed" in reason.sentence


@pytest.mark.parametrize("limit", [EXACT, ROUNDED], ids=["exact", "rounded"])
def test_log_probabilities_may_be_off_by_what_rounding_explains(limit):
    seen = made_up_seen(0, 0, 0)
    off = lambda by: answer(logprobs=(-0.1, -0.2 - by, -0.3))  # noqa: E731
    assert judged(off(0.99 * limit.logprob), seen, limit) == []
    (reason,) = judged(off(1.01 * limit.logprob), seen, limit)
    assert reason.field == "at.logprobs[1]"


@pytest.mark.parametrize("limit", [EXACT, ROUNDED], ids=["exact", "rounded"])
def test_over_a_run_roundings_average_out_and_another_model_does_not(limit):
    for tokens, off, fields in (
        (AVERAGED_FROM, 0.99 * limit.mean_logprob, []),
        (AVERAGED_FROM, 1.01 * limit.mean_logprob, ["runs[0]"]),
        (AVERAGED_FROM, math.nan, ["runs[0]"]),
        (AVERAGED_FROM - 1, 1.01 * limit.mean_logprob, []),
    ):
        assert [r.field for r in judge_average("runs[0]", "TP=1", [off] * tokens, limit)] == fields


def test_log_probabilities_of_some_tokens_only_are_refuted_and_none_at_all_are_not():
    seen = made_up_seen(0, 0, 0)
    (reason,) = judged(answer(logprobs=(-0.1, -0.2)), seen)
    assert "2 log probabilities of 3 tokens" in reason.sentence
    assert judged(answer(logprobs=None), seen) == []


def test_the_text_must_be_that_of_the_tokens():
    seen = made_up_seen(0, 0, 0)
    (reason,) = judged(answer(text=" a blue fox"), seen)
    assert (reason.field, '" a red fox"' in reason.sentence) == ("at.text", True)
    # What tokenizers differ in: a space in front, and a character whose last bytes have not come.
    assert judged(answer(text="a red fox"), seen) == []
    assert judged(answer(), made_up_seen(0, 0, 0, text=" a red fox\ufffd")) == []
    # A stop string is left out with what came in one token with it.
    assert judged(answer(text="a red", finish_reason="stop"), seen) == []
    assert judged(answer(text="a red", finish_reason="stop", token_ids=(1, 2, 7)), seen) != []


def test_the_prompt_must_be_in_what_the_model_saw_where_other_messages_may_stand_before_it():
    seen = made_up_seen(0, 0, 0, prompt_as_recorded=False, prompt_text="<system>Be brief<user> Hello\n<assistant>")
    assert judged(answer(), seen) == []
    seen = made_up_seen(0, 0, 0, prompt_as_recorded=False, prompt_text="<user>Goodbye<assistant>")
    (reason,) = judged(answer(), seen)
    assert (reason.outcome, reason.field) == (REFUTED, "data.prompts[0].token_ids")


@pytest.mark.parametrize(
    ("changes", "context_full", "outcome"),
    [
        ({}, False, None),
        ({"max_tokens": 2}, False, REFUTED),
        ({"max_tokens": 9}, False, REFUTED),
        ({"max_tokens": 9}, True, None),
        ({"max_tokens": None}, False, None),
        ({"max_tokens": 9, "finish_reason": "stop", "token_ids": (1, 2, 7)}, False, None),
        ({"max_tokens": 9, "finish_reason": "stop"}, False, NOT_REPLAYABLE),
        ({"max_tokens": 9, "finish_reason": "abort"}, False, None),
    ],
    ids=["full", "too long", "cut short", "context full", "no limit known", "ended", "stop string", "aborted"],
)
def test_an_answer_must_have_ended_as_it_says(changes, context_full, outcome):
    reasons = list(judge_ending("at", "answer 1", answer(**changes), context_full, ENDS))
    assert [reason.outcome for reason in reasons] == ([outcome] if outcome else [])


def test_text_from_a_record_is_quoted_short_and_without_anything_that_moves_the_cursor():
    assert quoted(" blue\n") == '" blue\\n"'
    assert "\x1b" not in quoted("\x1b[2Jgone") and "\u202e" not in quoted("\u202egone")
    assert len(quoted("x" * 1000)) < 70


# The record as a whole


@pytest.fixture(scope="module")
def stage() -> Stage:
    return stage_for(find("smollm2-135m"), ServePlan(dtype="bfloat16"), 200)


def changed(path: Path, place: int = 0, **changes) -> Checkpoint:
    return tampering.edited(checkpoint.read(path), place, **changes)


def test_what_is_refuted_comes_first_and_the_rest_is_counted(stage):
    record = checkpoint.read(FLOAT32)
    reasons = [Reason(NOT_REPLAYABLE, "a", "too long"), Reason(REFUTED, "b", "not so"), Reason(REFUTED, "c", "nor so")]
    replayed = summed_up("file.json", record, {}, reasons, stage)
    assert (replayed.outcome, replayed.reason) == (REFUTED, "not so (and 2 more)")
    assert str(replayed) == "file.json: refuted: not so (and 2 more)\n  nor so\n  too long"
    json.dumps(replayed.to_dict(), allow_nan=False)


def test_a_record_is_confirmed_only_by_greedy_answers(stage):
    record = checkpoint.read(SAMPLED)
    seen = dict.fromkeys(range(4), made_up_seen(0, 0, 0))
    assert summed_up("f", record, seen, [], stage).outcome == NOT_REPLAYABLE
    replayed = summed_up("f", tampering.edited(record, 0, temperature=0.0), seen, [], stage)
    assert replayed.outcome == CONFIRMED
    assert replayed.reason == (
        "3 tokens of 1 answer are what smollm2-135m says; 3 sampled answers held to the log probabilities alone"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"token_ids": ()}, "it has no tokens"),
        ({"prompt_index": 99}, "the record lacks its run or its prompt"),
        ({"run_id": "none"}, "the record lacks its run or its prompt"),
        ({"temperature": 0.7, "logprobs": None}, "it was sampled (temperature 0.7), and its log probabilities"),
        ({"token_ids": (5,) * 400}, "440 tokens are more than the 256 of this replay"),
    ],
    ids=["all there", "no tokens", "no prompt", "no run", "sampled", "too long"],
)
def test_why_an_answer_cannot_be_replayed(stage, changes, why):
    record = changed(FLOAT32, **changes)
    found = why_not(record, record.observed.completions[0], stage)
    assert found is None if why is None else found.startswith(why)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--seed", "1", "--generation-config", "vllm"], None),
        (["--generation_config=mine"], "--generation-config of its own"),
        (["--kv-cache-dtype=fp8"], "--kv-cache-dtype"),
        (["--override-generation-config", '{"repetition_penalty": 2}'], "--override-generation-config"),
    ],
)
def test_flags_that_change_what_a_model_says_are_beyond_replay(stage, flags, why):
    run = checkpoint.read(FLOAT32).runs[0]
    found = replay_models.beyond_replay(run.model_copy(update={"argv": ((*run.argv[0], *flags),)}), stage.model)
    assert found is None if why is None else why in found


def test_a_model_that_penalizes_repetition_by_itself_is_beyond_replay(tmp_path, stage):
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.1, "eos_token_id": [7, 8]}')
    model = type(stage.model)("m", tmp_path, stage.model.shape, "folder", "")
    run = checkpoint.read(FLOAT32).runs[0]
    assert "sets repetition_penalty" in replay_models.beyond_replay(run, model)
    plain = run.model_copy(update={"argv": ((*run.argv[0], "--generation-config", "vllm"),)})
    assert replay_models.beyond_replay(plain, model) is None
    assert replay_models.end_tokens(model) == {7, 8}


def test_a_model_is_known_by_its_weights_and_never_by_a_path_in_the_record(tmp_path, stage):
    data = checkpoint.read(FLOAT32).data
    assert replay_models.model_of(data.model_copy(update={"model": str(tmp_path)})).name == "smollm2-135m"
    folder = stage.model.path
    for changes, why in (
        ({"weights_sha256": {}}, "does not say which weights"),
        ({"weights_sha256": {"model.safetensors": "0" * 64}}, "other weights were served than those of smollm2-135m"),
        ({"weights_sha256": {"x": "0" * 64}, "model": str(folder), "source": "folder"}, "type --model FOLDER"),
        ({"weights_sha256": {"x": "0" * 64}, "model": "nobody/nothing", "source": "hugging-face"}, "is not on this"),
        ({"weights_sha256": {"x": "0" * 64}, "model": "../../etc"}, "is not on this machine"),
    ):
        with pytest.raises(replay_models.NotHere, match=why):
            replay_models.model_of(data.model_copy(update=changes))
    published = {"weights_sha256": {"model.safetensors": BUILT_IN["smollm2-135m-published"].weights_sha256}}
    assert replay_models.model_of(data.model_copy(update=published)).name == "smollm2-135m-published"


def test_special_tokens_are_read_from_the_model(stage):
    assert stage.ends == {2} and {0, 1, 2} <= stage.special and 260 not in stage.special


# Real records on the real model


@pytest.fixture(scope="module")
def forger(stage) -> tampering.Forger:
    tokenizer = Tokenizer.from_file(str(stage.model.path / "tokenizer.json"))
    return tampering.Forger(random.Random(5), tokenizer, [checkpoint.read(BFLOAT16["TP=1"])])


def with_answers(path: Path, *places: int) -> Checkpoint:
    """A record with some of its answers, for there are many to replay."""
    found = checkpoint.read(path)
    completions = tuple(found.observed.completions[place] for place in places)
    observed = found.observed.model_copy(update={"completions": completions, "comparisons": ()})
    return tampering.resealed(found.model_copy(update={"observed": observed}))


MESSAGES = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "What is a harbor?"}]
FRESH = {
    "a chat": lambda server: server.chat("What is a harbor?", max_tokens=12),
    "a chat with a system message": lambda server: server.chat(MESSAGES, max_tokens=12),
    "a text": lambda server: server.complete("The capital of France is", max_tokens=12),
    "beyond the end of the answer": lambda server: server.chat("Say hi.", max_tokens=48, ignore_eos=True),
    "special tokens in the text": lambda server: server.chat("Say hi.", max_tokens=48, skip_special_tokens=False),
    "no log probabilities asked for": lambda server: server.chat("What is a harbor?", max_tokens=12, logprobs=False),
    "half a character": lambda server: server.complete("The emoji of a smile: 😀 😃 😄 😁", max_tokens=2),
    "a stop string": lambda server: server.chat("What is a harbor?", max_tokens=48, stop=["ship", "water", "."]),
    "sampled": lambda server: server.chat("What is a harbor?", max_tokens=12, temperature=1.0, seed=1),
}


@pytest.fixture(scope="module")
def replays(stage, forger, tmp_path_factory):
    """Name -> replay, of recorded, changed and fresh records in bfloat16, on one server."""
    original, sampled = with_answers(BFLOAT16["TP=2"], 2, 3), checkpoint.read(SAMPLED)
    records = {name: checkpoint.read(path) for name, path in BFLOAT16.items()}
    records |= {kind: edit(original, forger) for kind, edit in tampering.EDITS.items()}
    records |= {
        "sampled, recorded": sampled,
        "sampled, claimed greedy": tampering.claimed(sampled, original),
        "made in float32": checkpoint.read(FLOAT32),
        "log probabilities left out": tampering.without_logprobs(original),
        "a word changed, log probabilities left out": tampering.without_logprobs(
            tampering.word_changed(original, forger)
        ),
        "a token that the model does not have": changed(BFLOAT16["TP=2"], token_ids=(4_000_000_000,) * 3),
        "token 6 of answer 2 changed": tampering.with_token(original, 1, 5, THE, forger),
        "no completion": original.model_copy(update={"observed": type(original.observed)()}),
    }
    with serve(stage.plan, on_progress=lambda text: None) as server:
        for name, ask in FRESH.items():
            server.completions.clear()
            ask(server)
            folder = tmp_path_factory.mktemp("fresh")
            records[name] = record(student="s1", chapter=7, lab="l", servers=[server], folder=folder).checkpoint
        found: dict[int, Replayed] = {}
        replay_on(server, stage, list(records.items()), range(len(records)), found, lambda text: None)
    return dict(zip(records, (found[number] for number in range(len(records))), strict=True))


@pytest.mark.parametrize("name", [*BFLOAT16, *FRESH.keys() - {"a stop string", "sampled"}])
def test_an_honest_record_is_confirmed(replays, name):
    assert replays[name].outcome == CONFIRMED, replays[name]
    assert replays[name].tokens > 0 and replays[name].largest_gap <= ROUNDED.gap / 2


def test_a_prompt_that_is_not_all_that_the_model_saw_is_said_to_be(replays):
    assert "the model saw more than the recorded prompt in 1 answer" in replays["a chat with a system message"].reason
    assert "more than" not in replays["a chat"].reason


def test_what_was_made_in_float32_is_confirmed_in_bfloat16_too(replays):
    assert replays["made in float32"].outcome == CONFIRMED, replays["made in float32"]
    assert replays["made in float32"].completions == 12


@pytest.mark.parametrize("kind", [*tampering.EDITS, "sampled, claimed greedy"])
def test_a_record_that_was_changed_is_refuted(replays, kind):
    assert replays[kind].outcome == REFUTED, replays[kind]


def test_what_is_refuted_is_named(replays):
    replayed = replays["token 6 of answer 2 changed"]
    assert (replayed.outcome, replayed.dtype, replayed.model) == (REFUTED, "bfloat16", "smollm2-135m")
    assert replayed.reasons[0].field == "observed.completions[1].token_ids[5]"
    pattern = (
        r'answer 2 \(prompt 4, TP=2\), token 6 of 39: recorded " the", the model\'s choice is ".+", [\d.]+ nats better'
    )
    assert re.match(pattern, replayed.reason), replayed.reason
    assert replayed.largest_gap > ROUNDED.gap and replayed.not_the_choice > 0


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sampled, recorded", "every answer was sampled"),
        ("sampled", "every answer was sampled"),
        ("a stop string", "it says stop, and its last token ends no answer"),
        ("no completion", "the record holds no completion"),
        ("a token that the model does not have", "Token id 4000000000 is out of vocabulary"),
    ],
)
def test_what_cannot_be_replayed_says_why(replays, name, why):
    assert replays[name].outcome == NOT_REPLAYABLE, replays[name]
    assert why in replays[name].reason


def test_without_log_probabilities_the_tokens_alone_decide(replays):
    assert replays["log probabilities left out"].outcome == CONFIRMED
    assert replays["log probabilities left out"].largest_logprob_difference is None
    assert replays["a word changed, log probabilities left out"].outcome == REFUTED


# The command line, in float32, and what ends it


def run_cli(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("localai-clusters"), "checkpoint", "replay", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout)


def test_the_command_holds_float32_records_to_the_narrow_tolerance(tmp_path, forger):
    """All on one server: three splits of two students, one changed, one of another model, one that is no record."""
    originals = [FLOAT32, OTHER_STUDENT]
    (tmp_path / "none.json").write_text("{")
    wrong = {
        name: checkpoint.write(edit(with_answers(FLOAT32, 0, 6), forger), tmp_path / name.replace(" ", "-"))
        for name, edit in tampering.EDITS.items()
    }
    files = [*originals, OTHER_WEIGHTS, *wrong.values(), tmp_path / "none.json"]
    done = run_cli(*files, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["holds"] is False
    replays = dict(zip(map(str, files), found["records"], strict=True))
    for path in originals:
        assert replays[str(path)]["outcome"] == CONFIRMED
        assert (replays[str(path)]["dtype"], replays[str(path)]["completions"]) == ("float32", 12)
        assert replays[str(path)]["largest_gap"] == 0
        assert replays[str(path)]["largest_logprob_difference"] < EXACT.logprob / 20
    for path in (OTHER_WEIGHTS, *wrong.values()):
        assert replays[str(path)]["outcome"] == REFUTED, replays[str(path)]
    assert replays[str(tmp_path / "none.json")]["reason"].startswith("the file ends too early")


def test_the_command_starts_no_server_for_a_record_whose_model_is_not_here(tmp_path):
    record = checkpoint.read(FLOAT32)
    data = record.data.model_copy(update={"weights_sha256": {"model.safetensors": "0" * 64}})
    path = checkpoint.write(tampering.resealed(record.model_copy(update={"data": data})), tmp_path)
    done = run_cli(path)
    assert done.returncode == 2
    why = "other weights were served than those of smollm2-135m on this machine"
    assert done.stdout == f"{path}: not replayable: {why}\n"


def test_a_server_that_cannot_be_started_is_why_nothing_was_replayed():
    record = checkpoint.read(FLOAT32)
    plan = ServePlan(dtype="float32", tensor_parallel_size=5)
    (replayed,) = replay([("f", record)], plan=plan, on_progress=lambda text: None)
    assert replayed.outcome == NOT_REPLAYABLE
    assert replayed.reason.startswith("smollm2-135m could not be served: ")


def test_a_server_that_dies_keeps_what_was_replayed_and_says_how_it_died(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    record = tampering.without_logprobs(checkpoint.read(BFLOAT16["TP=1"]))
    said = []

    def kill_after_the_first(text: str) -> None:
        said.append(text)
        if "replayed 1 of" in text:
            os.kill(read_rank(runs_dir() / newest_run(), 0).pid, signal.SIGKILL)

    found = replay([(str(n), record) for n in range(60)], on_progress=kill_after_the_first)
    outcomes = [replayed.outcome for replayed in found]
    assert CONFIRMED in outcomes and NOT_REPLAYABLE in outcomes
    assert {replayed.reason.split(" (")[0] for replayed in found if replayed.outcome == NOT_REPLAYABLE} == {
        "the server is gone: rank 0 was killed by SIGKILL"
    }
    assert_nothing_left(newest_run())


def test_ctrl_c_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    command = [Path(sys.executable).with_name("localai-clusters"), "checkpoint", "replay", FLOAT32]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as started:
        assert any("importing vLLM" in line for line in started.stderr)
        started.send_signal(signal.SIGINT)
        assert started.stderr.read().splitlines()[-1] == "localai-clusters: stopped"
        assert started.wait(timeout=30) == 130
    assert_nothing_left(newest_run())


def test_an_interrupt_ends_the_questions_that_are_open():
    """The server here is one that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        interrupt = threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            talk(url, {}, lambda ask: ask("/v1/completions", {}))
        interrupt.join()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replay")]


def test_a_server_that_is_not_there_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ServerGone, match=f"no answer from {url}/tokenize"):
        talk(url, {}, lambda ask: ask("/tokenize", {}))
