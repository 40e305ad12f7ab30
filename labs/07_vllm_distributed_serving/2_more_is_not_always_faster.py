# %% [markdown]
# # Lab 7.2: More is not always faster
#
# You serve one model split in several ways, put each under the same load, and find out which split is faster, when,
# and why. On two cores the notebook runs for about three minutes, most of it waiting for servers to start.
#
# A **split** is how the model is laid over processes (ranks). `TP=2`, tensor parallel: both ranks compute every layer
# together, half of each matrix each, and add up their halves twice a layer (an *all-reduce*). `PP=2`, pipeline
# parallel: rank 0 has the first half of the layers, rank 1 the second half, and each token passes from one to the
# other.
#
# Say what you expect first, then measure, then explain the difference. Put your answers in place of the dots.
# `lab.work_ms` shows the question of the exercise `work_ms`, `lab.work_ms.hint()` helps, `lab.work_ms.solution()`
# tells.

# %% tags=["parameters"]
student: str = "student"  # your id, as it will stand in the record
model: str = "smollm2-135m"  # a built-in name, a folder or a Hugging Face id
layouts: str = "tp1,tp1@1,tp2,pp2,tp4"  # the splits to serve; tp1@1 is one rank on one core, left out on GPUs
concurrency: str = "1,4,16"  # how many requests run at a time
max_tokens: int = 32  # of each answer
longest: float = 10.0  # seconds that one load may take; a slow split gets shorter answers
rounds: int = 1  # each split so many times, and medians: for a machine that does other work too

# %%
import localai_clusters as lac

lab = lac.open_lab("07/2", student=student)
machine = lac.Machine.now()
whole = lac.ServePlan(model=model, max_model_len=1024)
lac.split_map(whole.with_(tensor_parallel_size=2))

# %% tags=["exercises"]
from localai_clusters.exercises import Choice, Number, Text

ci = {"layouts": "tp1,tp1@1,tp2,tp4", "concurrency": "1,8", "max_tokens": 8, "longest": 3.0}


LAYOUTS = ("TP=1", "TP=1 on 1 core", "TP=2", "PP=2", "TP=4")


def near_best(many):
    """Every split within 15% of the best: less may be noise. On one machine two splits may come out alike."""

    def right(given):
        found = given.found
        rates = {name: found.tokens_per_second(name, many(found)) or 0.0 for name in found.names}
        if not any(rates.values()):
            return None  # nothing was measured
        return {name for name in LAYOUTS if rates.get(name, 0.0) >= 0.85 * max(rates.values())}

    return right


fastest_alone = Choice(
    "Which split gives the most tokens per second with one request at a time?",
    options=LAYOUTS,
    answer=near_best(lambda found: min(found.concurrency)),
    why_not={
        "PP=2": "a token passes through the stages one after the other: while one computes, the other idles",
        "TP=4": "look at how many cores the four ranks have together",
        "TP=1 on 1 core": "half of the cores do nothing there",
    },
    hints=(
        "Look at the table, at the rows of the smallest number of requests, in the column tokens/s.",
        "sweep.best(...) names it. Splits within 15% of the best count as best.",
    ),
    solution="`sweep.best(1)`. One rank on both cores and two ranks with one core each do the same work with the same "
    "cores, so they come out alike; every other split leaves cores idle or makes ranks wait for each other.",
)
fastest_crowd = Choice(
    "Which split gives the most tokens per second with the largest number of requests at a time?",
    options=LAYOUTS,
    answer=near_best(lambda found: max(found.concurrency)),
    why_not={
        "TP=4": "look at how many cores the four ranks have together",
        "TP=1 on 1 core": "half of the cores do nothing there",
    },
    hints=(
        "Look at the rows of the largest number of requests.",
        "sweep.best(...) names it. Splits within 15% of the best count as best.",
    ),
    solution="`sweep.best(16)`, or whatever the largest number was. With many requests a step computes many tokens at "
    "once, so there is more to share for the same number of messages.",
)
devices_of_tp1 = Number(
    "Cores (on GPUs: GPUs) that the one rank of TP=1 computed on",
    answer=lambda given: len(given.found.places("TP=1")[0]),
    unit="cores",
    hints=("Look at the table above, in the column where.",),
    solution="All that the lab uses: on a CPU both cores, for a rank gets an equal share of them, and one rank gets "
    "all. On GPUs one, for a rank has one GPU.",
)
all_reduces = Number(
    "All-reduces that one token of TP=2 waits for",
    answer=lambda given: 2 * given.shape.num_hidden_layers + 1,
    unit="all-reduces",
    mistakes={
        "the layers' are all there; one more comes before the first layer, for the embedding is split too": (
            lambda given: 2 * given.shape.num_hidden_layers
        ),
        "a layer has two blocks, attention and MLP, and each ends in one": lambda given: given.shape.num_hidden_layers,
        "the embedding has one; and a layer has two blocks, attention and MLP": (
            lambda given: given.shape.num_hidden_layers + 1
        ),
    },
    hints=(
        "After which matrices do the ranks hold halves that have to be added up? Look at the picture at the top.",
        "Two a layer: after attention's output and after the MLP's. And the embedding, which is split by vocabulary.",
    ),
    solution="Two a layer (attention's o_proj and the MLP's down_proj are split by row, so each rank holds a part of "
    "the sum) and one for the embedding, whose rows are shared out: 2 x layers + 1.",
)
message_bytes = Number(
    "Bytes of one such message, for one token of one request",
    answer=lambda given: given.shape.hidden_size * given.element_bytes,
    unit="bytes",
    mistakes={"those are the numbers in it; each takes more than one byte": lambda given: given.shape.hidden_size},
    hints=(
        "What is added up is the hidden state: as many numbers as the model is wide.",
        "hidden_size x bytes of a number. bfloat16 has 16 bits.",
    ),
    solution="The hidden state of one token: hidden_size numbers of 2 bytes (bfloat16). The halves are sums, so each "
    "rank holds a whole vector: it does not get smaller with more ranks.",
)
messages_ms = Number(
    "Milliseconds that one token of TP=2 waits for its all-reduces, by the time of one that was measured alone",
    answer=lambda given: (2 * given.shape.num_hidden_layers + 1) * given.one_all_reduce * 1e3,
    unit="ms",
    tolerance=0.06,
    mistakes={"that is one all-reduce; how many does a token wait for?": lambda given: given.one_all_reduce * 1e3},
    hints=("How many there are, times how long one takes.", "messages['TP=2'].all_reduce_seconds is in seconds."),
    solution="all_reduces x messages['TP=2'].all_reduce_seconds x 1000. It is a floor: it was measured with nothing to "
    "compute meanwhile, so no rank ever had to wait for one that was late.",
)
work_ms = Number(
    "Milliseconds of a token that two ranks can share: `work` of the model",
    answer=lambda given: 2 * (given.alone - given.split + given.messages) * 1e3,
    unit="ms",
    tolerance=0.06,
    mistakes={
        "two ranks have half of it each: the difference of the two times is half of the work": (
            lambda given: (given.alone - given.split + given.messages) * 1e3
        ),
        "TP=2 saved more than the difference of the times shows: it paid for its messages out of that": (
            lambda given: 2 * (given.alone - given.split) * 1e3
        ),
    },
    hints=(
        "alone = fixed + work. split = fixed + work / 2 + messages. Subtract one from the other.",
        "alone - split = work / 2 - messages, so work = 2 x (alone - split + messages). Seconds times 1000.",
    ),
    solution="Subtracting the two equations leaves alone - split = work / 2 - messages. So work is twice the "
    "difference of the times, plus twice the messages; all else is `fixed`.",
)
larger = Number(
    "How many times larger the weights must be for TP=2 to be 1.5 times as fast as one device",
    answer=lambda given: (0.5 * (given.alone - given.work) + 1.5 * given.messages) / (given.work * 0.25),
    unit="times",
    tolerance=0.08,
    mistakes={
        "is the work in both times k times larger, in that of one device and in that of two?": (
            lambda given: (0.5 * (given.alone - given.work) + 1.5 * given.messages) / given.work
        ),
    },
    hints=(
        "Write fixed + k x work = 1.5 x (fixed + k x work / 2 + messages) and solve for k.",
        "k x work x (1 - 0.75) = 0.5 x fixed + 1.5 x messages.",
    ),
    solution="fixed + k work = 1.5 (fixed + k work / 2 + messages) gives k = (0.5 fixed + 1.5 messages) / (0.25 work). "
    "`speed.larger_for(1.5)` says the same. However large the weights, it never becomes 2: fixed and messages stay.",
)
who_waits = Choice(
    "Two ranks share a core, and one of them has reached an all-reduce that the other has not. What does it do?",
    options=(
        "it sleeps until the other one wakes it",
        "it looks at the shared memory again and again, and so keeps the core",
        "it goes on with the next layer",
        "it takes over the other one's part",
    ),
    answer="it looks at the shared memory again and again, and so keeps the core",
    why_not={
        "it sleeps until the other one wakes it": "being woken takes the kernel tens of microseconds; compare that "
        "with the time of one all-reduce of TP=2, and with that of TP=4",
        "it goes on with the next layer": "what does the next layer take as its input?",
        "it takes over the other one's part": "it does not have the other one's weights",
    },
    hints=(
        "With a core each, an all-reduce takes some microseconds. Which way of waiting is that fast?",
        "Waiting that fast costs a core. Who else needs this core?",
    ),
    solution="It spins: it reads the shared memory in a loop. With a core of its own that is the fastest way to wait. "
    "On a shared core it uses up its time slice of some milliseconds, while the rank it waits for cannot run.",
)
worth_it = Text(
    "The chapter says: one rank beats a layout that is cut too small. Does that hold in your figures, with one request "
    "at a time and with many? Name the figure that shows it, and the cause.",
    words=30,
    guide="Names tokens/s or time between tokens of TP=4 against TP=1 (or of TP=2 on GPUs) at both ends; as cause "
    "ranks that wait for each other in 61 all-reduces a token on shared cores, not the bytes; full points if it also "
    "says that TP=2 gains little over TP=1 here since that uses both cores too.",
)

# %% [markdown]
# ## Predict
#
# The picture shows TP=2. These splits will be served, one after the other; each may use two cores of this machine,
# except `TP=1 on 1 core` (on GPUs: a GPU for each rank):
#
# | split | what it is |
# |---|---|
# | `TP=1` | one rank, with a thread on each core |
# | `TP=1 on 1 core` | one rank that may use one core only |
# | `TP=2` | two ranks, a core each, half of each matrix each |
# | `PP=2` | two ranks, a core each, half of the layers each |
# | `TP=4` | four ranks on two cores: cut smaller than the machine |
#
# Which one gives the most tokens per second? Write down what you expect, with one request at a time and with many. It
# is checked when you have measured. A wrong guess costs nothing: you can change it then. Splits within 15% of the
# best count as best, for less may be noise.

# %%
fastest_alone = ...  # with one request at a time: "TP=1", "TP=1 on 1 core", "TP=2", "PP=2" or "TP=4"
fastest_crowd = ...  # with the largest number of requests at a time

# %% [markdown]
# ## Measure
#
# Before a plan is launched, preflight looks whether it can work. Four ranks on two cores cannot work *well*, and are
# refused:

# %%
from localai_clusters.sweeping import on_cores, splits

on_cpu = machine.backend == "cpu"
with on_cores(2 if on_cpu else None):  # two cores, however many there are here
    report = lac.preflight(whole.with_(tensor_parallel_size=4))
for verdict in report.failed:
    print(f"{verdict.check}: {verdict.message}")

# %% [markdown]
# To see what happens all the same, that check is skipped by its name, `devices`.

# %%
cases = []
for case in splits(layouts, whole):
    if on_cpu:
        cases.append(lac.Case(case.plan, case.name, cores=case.cores or 2))
    elif not case.cores and case.plan.split_size <= machine.devices:  # a GPU for each rank
        cases.append(case)
skip = ("devices",) if on_cpu else ()
", ".join(case.name for case in cases)

# %% [markdown]
# Now the sweep. Each split is started, warmed up, loaded with each number of requests at a time, and stopped. Words
# to know: **tokens/s** counts all requests together; **first token** is how long a request waits for its first token;
# **between tokens** is how long it then waits for each next one (inter-token latency).

# %%
many = [int(number) for number in concurrency.split(",")]
sweep = lac.sweep(
    cases,
    many,
    max_tokens=max_tokens,
    longest=longest,
    rounds=rounds,
    prompts=lab.prompts(2),  # each server answers your own prompts too, for the record
    skip_checks=skip,
)
sweep

# %%
sweep.throughput()

# %%
sweep.latency()

# %% [markdown]
# Where does each rank compute? Compare `TP=1` with `TP=2`: this is what makes the comparison fair, or not.

# %%
sweep.where()

# %% [markdown]
# ### Were you right?

# %%
lab.given(found=sweep)
# BEGIN SOLUTION
fastest_alone = sweep.best(min(many))
fastest_crowd = sweep.best(max(many))
# END SOLUTION
lab.fastest_alone.check(fastest_alone)
# lab.fastest_alone.hint()

# %%
lab.fastest_crowd.check(fastest_crowd)
# lab.fastest_crowd.hint()

# %%
devices_of_tp1 = ...  # cores, or GPUs
# BEGIN SOLUTION
devices_of_tp1 = len(sweep.places("TP=1")[0])
# END SOLUTION
lab.devices_of_tp1.check(devices_of_tp1)
# lab.devices_of_tp1.hint()

# %% [markdown]
# **Pipeline parallel** (if you served it): with one request, a token passes through the stages one after the other,
# so one core computes while the other waits; it cannot be faster than one core. With many requests the stages can
# work on different ones at the same time. But each then computes smaller batches, and reads its weights again for
# each of them: on a model this small that gains little, or loses.
#
# **Tensor parallel.** One rank on two cores is parallel too: its threads share out the rows of each matrix (OpenMP),
# and they share one memory, so nothing has to be sent. TP=2 does the same with two processes. On this machine the
# split cannot win much: it has no core that TP=1 did not have, and it pays for a second process in memory. On GPUs it
# is different, a rank has one GPU and TP=2 twice as much of everything. The fair question for a core as for a GPU is
# therefore TP=2 against **one** device: `TP=1 on 1 core`.
#
# ## What do the messages cost?
#
# After every attention and every MLP block each rank holds a part of a sum. The all-reduce adds the parts up, and no
# rank can go on before it has the result.

# %%
from localai_clusters.models import look_up
from localai_clusters.sizing import DTYPE_BYTES, dtype_of

shape = look_up(whole.model)
lab.given(shape=shape, element_bytes=DTYPE_BYTES[dtype_of(whole, shape)])
print(f"{shape.num_hidden_layers} layers, hidden_size {shape.hidden_size}, {dtype_of(whole, shape)}")

# %%
all_reduces = ...  # of one token with TP=2
# BEGIN SOLUTION
all_reduces = 2 * shape.num_hidden_layers + 1
# END SOLUTION
lab.all_reduces.check(all_reduces)
# lab.all_reduces.hint()

# %%
message_bytes = ...  # of one of them, for one token of one request
# BEGIN SOLUTION
message_bytes = shape.hidden_size * 2
# END SOLUTION
lab.message_bytes.check(message_bytes)
# lab.message_bytes.hint()

# %% [markdown]
# `lac.communication` starts the ranks of a plan without vLLM, for some seconds, and times their messages one after
# another, through the same shared memory (on GPUs: NCCL) that vLLM uses. Nothing is computed meanwhile.

# %%
messages = {}
for case in cases:
    if case.plan.split_size > 1:
        messages[case.name] = lac.communication(case.plan, cores=case.cores, skip_checks=skip)
messages.get("TP=2", "TP=2 was not served: this part needs two devices")

# %%
if "TP=2" in messages:
    lab.given(one_all_reduce=messages["TP=2"].all_reduce_seconds)
messages_ms = ...  # per token with TP=2: count times the median of the message of your size
# BEGIN SOLUTION
messages_ms = all_reduces * messages["TP=2"].all_reduce_seconds * 1e3
# END SOLUTION
lab.messages_ms.check(messages_ms)
# lab.messages_ms.hint()

# %% [markdown]
# How much of the time between tokens is that?

# %%
lac.where_it_goes(sweep, messages)

# %% [markdown]
# With TP=2 on shared memory the messages are a small part. Then why is TP=2 not twice as fast as one core? Because
# not all of a token can be shared. Take the simplest model (Amdahl's law, with a price for talking):
#
# ```
# t(n) = fixed + work / n + messages
# ```
#
# `work` is what n ranks share: above all reading the weights, each rank its part. `fixed` is what every rank does
# again however small its part is, or waits for: scheduling, sampling, the Python of each layer, the way to the
# client. You have measured t(1) on one device and t(2) on two, and the messages. That is enough for both unknowns.

# %%
one_device = "TP=1 on 1 core" if on_cpu else "TP=1"
few = min(many)
alone = sweep.itl(one_device, few) if one_device in sweep.names else None
split = sweep.itl("TP=2", few) if "TP=2" in sweep.names else None
sent = messages["TP=2"].seconds if "TP=2" in messages else None
lab.given(alone=alone, split=split, messages=sent)
if alone and split:
    print(f"alone    t(1) = {alone * 1e3:6.2f} ms   ({one_device})")
    print(f"split    t(2) = {split * 1e3:6.2f} ms   (TP=2)")
    print(f"messages      = {sent * 1e3:6.2f} ms")

# %%
work_ms = ...  # milliseconds
# BEGIN SOLUTION
work_ms = 2 * (alone - split + sent) * 1e3
# END SOLUTION
lab.work_ms.check(work_ms)
# lab.work_ms.hint()

# %% [markdown]
# With `fixed` and `work` the model says how a larger model would do: as many layers, only wider, so `work` grows k
# times, and `fixed` and the messages stay as they are. (Weights grow with the square of the width: k = 4 is twice as
# wide.)

# %%
from localai_clusters import plots

if alone and split:
    speed = lac.DecodeTime.fit(alone, split, sent)
    lab.given(work=speed.work)
    print(f"fixed {speed.fixed * 1e3:.1f} ms, work {speed.work * 1e3:.1f} ms")
    if min(speed.work, speed.fixed) <= 0:
        print("One of them is below zero: the noise was larger than the gain.")
        print("Sweep again with rounds = 3, and nothing else running.")
    sizes = (0.25, 0.5, 1, 2, 4, 8, 16, 32)
    speedups = plots.lines(
        "TP=2, how many times as fast as one device: by the model",
        {"TP=2": [(k, speed.speedup(2, larger=k)) for k in sizes]},
        x="times the weights",
        y="times as fast",
        log_x=True,
        levels={"ranks": 2.0},
    )
else:
    speedups = "needs the times of one device and of TP=2"
speedups

# %%
larger = ...  # times: how much larger for TP=2 to be 1.5 times as fast
# BEGIN SOLUTION
larger = speed.larger_for(1.5)
# END SOLUTION
lab.larger.check(larger)
# lab.larger.hint()

# %% [markdown]
# ## Cut too small
#
# The four ranks of TP=4 have a quarter of each matrix each, and two cores together. Their messages are as many and as
# large as those of TP=2. Look at how long one takes.

# %%
messages.get("TP=4", "TP=4 was not served on this machine")

# %%
if "TP=4" in messages:
    two, four = messages["TP=2"], messages["TP=4"]
    longer = four.all_reduce_seconds / two.all_reduce_seconds
    print(f"One all-reduce of TP=4 takes {longer:.0f} times as long as one of TP=2.")
    print(f"All of one token: {four.seconds * 1e3:.0f} ms.")
    if seen := sweep.itl("TP=4", few):
        print(f"Measured between two tokens of TP=4: {seen * 1e3:.0f} ms.")

# %% [markdown]
# So much longer, for the same few bytes. Nothing is wrong with the memory: it is about how a rank waits. Suppose two
# ranks share a core, and one of them has reached an all-reduce that the other has not. What does it do?
#
# - (a) it sleeps until the other one wakes it
# - (b) it looks at the shared memory again and again, and so keeps the core
# - (c) it goes on with the next layer
# - (d) it takes over the other one's part

# %%
who_waits = ...  # "a", "b", "c" or "d"
# BEGIN SOLUTION
who_waits = "b"
# END SOLUTION
lab.who_waits.check(who_waits)
# lab.who_waits.hint()

# %% [markdown]
# ## What you say
#
# The chapter claims that one rank beats a layout that is cut too small. Does it, in your figures? Say so in 30 words
# or more, with the figure that shows it and the cause. Then a sentence for the record on what your result depends on.

# %%
worth_it = ...  # 30 words or more
# BEGIN SOLUTION
worth_it = (
    "It holds at both ends: TP=4 gave fewer tokens per second than TP=1, with one request and with many, because its "
    "ranks share cores and wait for each other in every one of 61 all-reduces a token; the bytes are few. TP=2 gained "
    "little over TP=1, which uses both cores too."
)
# END SOLUTION
lab.worth_it.check(worth_it)

# %%
lab.summary()

# %%
depends_on = ...  # what would come out differently on another machine, or with another model?
# BEGIN SOLUTION
depends_on = "With a core or a GPU for each of four ranks, TP=4 would not wait for time slices of the kernel."
# END SOLUTION
recorded = lab.record(
    servers=sweep.servers,
    collectives=[one for told in messages.values() for one in told.collectives()],
    constraints=[depends_on],
)
recorded
