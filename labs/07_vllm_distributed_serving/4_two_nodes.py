# %% [markdown]
# # Lab 7.4: Two nodes
#
# One machine's GPUs are full, so you take a second machine. Between the two lies a network that is a hundred to ten
# thousand times slower than what joins GPUs inside a machine. Which split survives that?
#
# Here you serve one model on two nodes in two ways, tensor parallel across the link and pipeline parallel across it.
# You first work out how many bytes a token costs on the wire and how often it waits for the link, then you count and
# time both while you make the link slower, under a running server. At the end you cut the cable.
#
# The two nodes are on this machine: each has its own network, hostname, `/dev/shm` and core, and a link between them
# whose speed and delay can be set. The servers are real vLLM under real torchrun, one rank on each node. It takes about
# 4 minutes of machine time.

# %% tags=["parameters"]
student: str = "student"  # your id; it decides the words in your prompts
model: str = "smollm2-135m"  # any model that splits in two
tokens: int = 12  # that are generated at each setting of the link
delays_ms: str = "0 1 2 5 10"  # of the link, one way, in ms; the first without delay, the last the longest
slow_mbit: float = 10.0  # what a narrow link lets through, in Mbit/s

# %%
import atexit
import threading
import time
from dataclasses import replace
from itertools import combinations

import localai_clusters as lac
from localai_clusters import cost, links, plots
from localai_clusters.launch import nodes
from localai_clusters.launch.placing import place_of, plan_on
from localai_clusters.launch.why import how_it_ended
from localai_clusters.machine.facts import Gpu, GpuLink
from localai_clusters.models import BUILT_IN, find
from localai_clusters.observed import Failure
from localai_clusters.server import ServerError
from localai_clusters.tables import Table

lab = lac.open_lab("07/4", student=student)
delays = [float(delay) for delay in delays_ms.split()]
lab

# %% tags=["exercises"]
from localai_clusters.exercises import Choice, Number, Text

ci = {"tokens": 4, "delays_ms": "0 5"}

ELEMENT = 2  # bytes of a bfloat16


def all_reduces_of(given):
    return 2 * given.shape.num_hidden_layers + 1


def payload_of(given):
    return all_reduces_of(given) * given.shape.hidden_size * ELEMENT


def trips_of(ms):
    """One-way trips per token, from the slope between no delay and the longest."""
    at = {delay: value for (rate, delay), value in ms.items() if rate is None}
    return (at[max(at)] - at[min(at)]) / (max(at) - min(at))


def unshaped(counts):
    return next(count for count in counts if count.rate_mbit is None and not count.delay_ms)


def narrow(counts):
    return next(count for count in counts if count.rate_mbit is not None)


idle_ranks = Number(
    "Of the ranks that the chapter's second command starts, how many have no part of the model?",
    answer=8,
    unit="ranks",
    mistakes={
        "that is how many are started; how many of them does the split need?": 16,
        "tensor parallel 8 needs eight ranks, not one for each node": 14,
        "each of the two nodes starts ranks": 0,
    },
    hints=(
        "torchrun starts nnodes x nproc_per_node ranks.",
        "The split needs tensor parallel size x pipeline parallel size ranks. Take one from the other.",
    ),
    solution="2 nodes x 8 ranks = 16 are started, and 8 x 1 = 8 have a share of the model. vLLM refuses such a world "
    "size. The fix is a split that uses all 16: tensor parallel 8 within a node, two pipeline stages, one on each "
    "node.",
)
all_reduces = Number(
    "How many all-reduces does one token take with TP=2?",
    answer=all_reduces_of,
    unit="all-reduces",
    mistakes={
        "the embedding is split over the ranks too, by words, and its result is summed once": lambda g: (
            2 * g.shape.num_hidden_layers
        ),
        "a layer has two blocks, attention and MLP, and each ends with one": lambda g: g.shape.num_hidden_layers,
        "the embedding is in it; but attention and MLP of a layer each end with one": lambda g: (
            g.shape.num_hidden_layers + 1
        ),
    },
    hints=(
        "Each place where ranks hold partial sums ends with an all-reduce: o_proj and down_proj in every layer.",
        "2 for each layer, and one more before the first layer: the embedding is split by words.",
    ),
    solution="Attention ends with o_proj and the MLP with down_proj, both cut by row, so each rank has a partial sum: "
    "2 "
    "all-reduces in each layer. The embedding is cut by words; a rank gives zeros for words it lacks and the sum is "
    "taken once. 2 x layers + 1.",
)
tensor_bytes = Number(
    "Payload that one node sends for these all-reduces, per token",
    answer=payload_of,
    unit="bytes",
    mistakes={
        "a bfloat16 has two bytes": lambda g: payload_of(g) / 2,
        "that is what a float32 would cost; these are bfloat16": lambda g: payload_of(g) * 2,
        "that is one all-reduce": lambda g: g.shape.hidden_size * ELEMENT,
    },
    hints=(
        "An all-reduce sums one hidden vector for each token: hidden_size numbers of 2 bytes.",
        "In a ring of n ranks each sends 2 (n - 1) / n of the message. With n = 2 that is the message once.",
    ),
    solution="all-reduces x hidden_size x 2 bytes x 2 (n - 1) / n, and with n = 2 the last factor is 1. To this comes "
    "the all-gather of the logits at the end: half of the vocabulary, 2 bytes each.",
)
pipeline_bytes = Number(
    "Payload that node 0 sends to node 1 per token with PP=2",
    answer=lambda given: 2 * given.shape.hidden_size * ELEMENT,
    unit="bytes",
    mistakes={
        "two vectors cross: the hidden states, and the residual that vLLM has not added yet": lambda g: (
            g.shape.hidden_size * ELEMENT
        ),
        "nothing is sent at each layer: all layers of a stage are on one node": payload_of,
        "a bfloat16 has two bytes": lambda g: g.shape.hidden_size,
    },
    hints=(
        "What does layer 15 need that layer 14 made?",
        "vLLM hands on two vectors of hidden_size: hidden states and residual.",
    ),
    solution="2 x hidden_size x 2 bytes: hidden states and residual, once, from the last layer of stage 0 to the "
    "first of "
    "stage 1. How many layers there are does not matter.",
)
waiting = Number(
    "Milliseconds that a token with TP=2 waits for a link of 5 ms each way, for its all-reduces",
    answer=lambda given: all_reduces_of(given) * 4 * 5,
    unit="ms",
    tolerance=0.02,
    mistakes={
        "each of the all-reduces takes four trips, and each of these takes 5 ms": lambda g: all_reduces_of(g) * 5,
        "there and back is two trips; a ring of two goes there and back twice": lambda g: all_reduces_of(g) * 10,
    },
    hints=(
        "All-reduces cannot overlap: the next layer needs the sum of the one before.",
        "all-reduces x 4 trips x 5 ms.",
    ),
    solution="They come one after another, since each layer needs the sum before it: all-reduces x 4 x 5 ms, more "
    "than a "
    "second for every token, whatever the link's bandwidth is.",
)
sent_ratio = Number(
    "How many times as many bytes per token did node 0 send with TP=2 as with PP=2, on the link without limit or "
    "delay?",
    answer=lambda g: unshaped(g.tensor).sent[0].bytes / unshaped(g.pipeline).sent[0].bytes,
    unit="times",
    tolerance=0.05,
    hints=(
        "The row `bytes`, column `node 0 sent`, of the first table of each layout.",
        "Divide the one of TP=2 by the one of PP=2.",
    ),
    solution="Two tables, one division. It is more than the ratio of the two payloads that you predicted: tensor "
    "parallel also sends the logits, and wraps each of many small messages.",
)
narrow_floor = Number(
    "Milliseconds that the bytes of one token of TP=2 take at least to leave node 0 through the narrow link",
    answer=lambda g: narrow(g.tensor).sent[0].bytes / g.tokens * 8 / (g.slow_mbit * 1e6) * 1e3,
    unit="ms",
    tolerance=0.05,
    mistakes={
        "a byte has eight bits": lambda g: narrow(g.tensor).sent[0].bytes / g.tokens / (g.slow_mbit * 1e6) * 1e3,
    },
    hints=(
        "Bytes per token from the table of the narrow link, as bits, divided by the link's bits per second.",
        "bytes x 8 / (Mbit/s x 1,000,000) seconds; times 1,000 for ms.",
    ),
    solution="bytes x 8 / rate. It is a floor: a token takes longer, because it also computes, and because the two "
    "nodes do not send all the time; each all-reduce waits for the one before.",
)
pipeline_trips = Number(
    "One-way trips over the link that a token of PP=2 waits for, as your figures show",
    answer=lambda g: trips_of(g.pipeline_ms),
    unit="trips",
    tolerance=0.1,
    absolute=1.0,
    mistakes={"that is tensor parallel's": lambda g: trips_of(g.tensor_ms)},
    hints=(
        "A trip takes one delay. What does a token take more with the longest delay than without any?",
        "(ms with the longest delay - ms without) / (the longest delay in ms).",
    ),
    solution="(ms per token with the longest delay - ms without) / delay. Hidden states, residual and their "
    "description are messages of their own, each after a 'ready' from the other side, and the token goes back to "
    "stage 0.",
)
why_slow = Choice(
    "With the longest delay and no limit on the rate, what makes TP=2 slow?",
    options=(
        "the link is full: too many bytes for it",
        "waiting: messages that go one after another, each as late as the link",
        "computing: each rank has half of the model and takes longer",
    ),
    answer="waiting: messages that go one after another, each as late as the link",
    why_not={
        "the link is full: too many bytes for it": "With no limit it carries Gbit/s. How many bytes did a token send, "
        "and how long would these take?",
        "computing: each rank has half of the model and takes longer": "The ranks compute the same whatever the delay "
        "is, "
        "and without delay the token was much quicker.",
    },
    hints=("Compare the setting with delay and no limit with the narrow one without delay.",),
    solution="The bytes of a token would pass such a link in a millisecond. What adds up is waiting: every all-reduce "
    "is four messages one after another, and no all-reduce can begin before the last one has ended.",
)
sixteen = Choice(
    "Two machines with 8 GPUs each, NVLink within, 10 Gbit/s Ethernet between: which split answers one user soonest?",
    options=("TP=16", "TP=8 x PP=2", "PP=16"),
    answer="TP=8 x PP=2",
    why_not={
        "TP=16": "Every layer then waits for the Ethernet twice.",
        "PP=16": "One GPU after another reads its layers, and fifteen wait: one token gets one GPU's bandwidth.",
    },
    hints=("Where are messages frequent, and where is the link quick?", "Many small messages inside, few between."),
    solution="Tensor parallel where messages are quick (NVLink), a pipeline where they are slow: eight GPUs read each "
    "layer together, and the network is crossed once on the way and once for the token.",
)
cut_noticed = Choice(
    "The cable is cut while an answer is being generated. When is the client told?",
    options=("at once", "after about 5 seconds", "after some minutes", "never: it hangs"),
    answer="after about 5 seconds",
    why_not={
        "at once": "Nothing arrives, and silence looks like a slow network. A killed process closes its connection; a "
        "cut cable closes nothing.",
        "after some minutes": "So long a collective of Gloo or NCCL would wait by itself. Something else watches here.",
        "never: it hangs": "Without a heartbeat it would be minutes. There is one here: the frames that you saw "
        "crossing an idle link.",
    },
    hints=("What crosses the link when nothing is generated, and what if nobody acknowledges it?",),
    solution="The ranks tell each other twice a second that they live. What is sent and not acknowledged for 5 "
    "seconds means that the network is gone; then the server ends its clients' requests with an error. A collective "
    "alone would wait for minutes.",
)
advice = Text(
    "A colleague has two machines with four GPUs each and 1 Gbit/s between them, and typed --tensor-parallel-size 8. "
    "What "
    "do you advise, and which of your figures shows it?",
    words=40,
    guide="TP=4 x PP=2 (or one machine alone if the model fits); names messages in series or all-reduces per token, "
    "and quotes a measured figure: ms per token or bytes per token of TP against PP at some delay or rate.",
)

# %% [markdown]
# ## 1. The chapter's second command
#
# It is meant for two machines with eight GPUs each. It is read here, word by word, and not run.

# %%
lac.explain_command(
    "torchrun --nnodes=2 --nproc_per_node=8 --node_rank=0 --master_addr=192.168.1.10 --master_port=29500 "
    "-m vllm.entrypoints.openai.api_server --model meta-llama/Meta-Llama-3-70B-Instruct --tensor-parallel-size 8"
)

# %% [markdown]
# **Exercise 1.** How many of the ranks that it starts have no part of the model?

# %%
idle_ranks = ...  # ranks
# BEGIN SOLUTION
idle_ranks = 2 * 8 - 8 * 1
# END SOLUTION
lab.idle_ranks.check(idle_ranks)
# lab.idle_ranks.hint()
# lab.idle_ranks.solution()

# %% [markdown]
# ## 2. Two nodes on this machine
#
# `localai-clusters nodes up` makes them from a shell; here it is a call. Nodes stay until `nodes down`. The first line
# ends what an earlier run of this notebook may have left, with every server on it.

# %%
nodes.down()
two = nodes.up(2)
atexit.register(two.down)  # if this kernel ends; one that is killed leaves them to: localai-clusters nodes down
is_shaped = two.carried_by is not None  # loopback addresses have no link that could be shaped, counted or cut
if not is_shaped:
    print(
        "No namespaces here, so the servers run and the link can be neither slowed nor counted.", *two.reasons, sep="\n"
    )
two

# %% [markdown]
# What a student with two machines types in two terminals, one on each, is typed here in two terminals of one machine;
# `localai-clusters nodes exec` puts each command into its node:

# %%
tensor_plan = lac.ServePlan(model=model, tensor_parallel_size=2, dtype="bfloat16", port=0, max_model_len=1024)
pipeline_plan = tensor_plan.with_(tensor_parallel_size=1, pipeline_parallel_size=2)
for node, command in enumerate(plan_on(tensor_plan, two).commands()):
    print(f"# terminal {node + 1}\nlocalai-clusters nodes exec {node} -- {command}\n")

# %% [markdown]
# `lac.serve(plan, nodes=two)` does the same and waits until the server answers. What does preflight say of this split
# on such a link? (From a shell: `localai-clusters preflight -tp 2 --on-nodes`.) A warning stops nothing.

# %%
lac.preflight(plan_on(tensor_plan, two), **place_of(two))

# %% [markdown]
# ## 3. Predict
#
# A rank with half of each matrix has half of each sum, so the ranks of TP=2 add up what they have: an **all-reduce**. A
# pipeline cuts between layers and hands on what the next layer needs.

# %%
shape = find(model).shape
lab.given(shape=shape, tokens=tokens, slow_mbit=slow_mbit)
print(f"{shape.num_hidden_layers} layers, hidden_size {shape.hidden_size}, vocabulary {shape.vocab_size}, bfloat16")

# %% [markdown]
# **Exercise 2.** How many all-reduces does one token take with TP=2? Lab 7.1 showed where they sit; do not forget the
# embedding.

# %%
all_reduces = ...  # all-reduces
# BEGIN SOLUTION
all_reduces = 2 * shape.num_hidden_layers + 1
# END SOLUTION
lab.all_reduces.check(all_reduces)
# lab.all_reduces.hint()
# lab.all_reduces.solution()

# %% [markdown]
# **Exercise 3.** How many bytes of payload does one node send for them, per token?

# %%
tensor_bytes = ...  # bytes
# BEGIN SOLUTION
tensor_bytes = all_reduces * shape.hidden_size * 2 * 2 * (2 - 1) // 2
# END SOLUTION
lab.tensor_bytes.check(tensor_bytes)
# lab.tensor_bytes.hint()
# lab.tensor_bytes.solution()

# %% [markdown]
# **Exercise 4.** And with PP=2, how many does node 0 send to node 1?

# %%
pipeline_bytes = ...  # bytes
# BEGIN SOLUTION
pipeline_bytes = 2 * shape.hidden_size * 2
# END SOLUTION
lab.pipeline_bytes.check(pipeline_bytes)
# lab.pipeline_bytes.hint()
# lab.pipeline_bytes.solution()

# %% [markdown]
# Bytes are one half. The other is waiting. On CPUs an all-reduce between two nodes is Gloo's ring, in two phases, and
# in each of them a "ready" goes one way before the data goes the other: **four trips, one after another**.
#
# **Exercise 5.** For how long does a token wait for its all-reduces, if a trip takes 5 ms?

# %%
waiting = ...  # ms
# BEGIN SOLUTION
waiting = all_reduces * 4 * 5
# END SOLUTION
lab.waiting.check(waiting)
# lab.waiting.hint()
# lab.waiting.solution()

# %% [markdown]
# ## 4. Tensor parallel across the link
#
# One server, and the link changes under it: slower from setting to setting, then narrow and without delay. At each one
# it generates an answer, whose tokens are timed and whose frames the kernel counts on both nodes.

# %%
settings = [(None, delay) for delay in delays] + [(slow_mbit, 0.0)] if is_shaped else [(None, 0.0)]


def measure(server):
    """Count and time one answer at each setting of the link: [(what was counted, ms per token)]."""
    found = []
    for rate_mbit, delay_ms in settings:
        if is_shaped:
            two.set_link(rate_mbit=rate_mbit, delay_ms=delay_ms)
            server.complete("Hello", max_tokens=2)  # TCP gets used to the new link
        with lac.traffic(server, two) as counted:
            server.complete("Once", max_tokens=tokens, ignore_eos=True)  # of one token, to count no prompt
        found.append((counted, counted.milliseconds_per_token))
        print(f"{counted.layout}  {counted.link.name:28} {counted.milliseconds_per_token:7.0f} ms per token")
    if is_shaped:
        two.set_link()
    return found


tensor_server = lac.serve(tensor_plan, nodes=two)
tensor_answers = [tensor_server.chat(prompt, max_tokens=4 * tokens) for prompt in lab.prompts(2)]
print(*tensor_answers, sep="\n\n")

# %%
tensor = measure(tensor_server)
tensor_server.stop()
tensor[0][0]

# %% [markdown]
# **Where do the other bytes come from?** You predicted the payload of the all-reduces. To each token comes the
# all-gather of the logits: half of the vocabulary from either rank, about 70 % as much as all all-reduces together. Around each
# message Gloo puts an envelope of 48 bytes, the "ready" messages are nothing but envelopes, and TCP puts a head of 66
# bytes around every frame, acknowledgements among them. With messages this small the wrapping weighs as much as what
# is in it. The rest is rank 0's list of what each step is, and what the prediction does not know.

# %% [markdown]
# ## 5. A pipeline across the link

# %%
pipeline_server = lac.serve(pipeline_plan, nodes=two)
pipeline_answers = [pipeline_server.chat(prompt, max_tokens=4 * tokens) for prompt in lab.prompts(2)]
print(*pipeline_answers, sep="\n\n")
pipeline = measure(pipeline_server)
pipeline[0][0]

# %%
lac.agreement(tensor_answers, pipeline_answers, "TP=2 and PP=2 over the link")

# %%
lab.given(
    tensor=[counted for counted, _ in tensor],
    pipeline=[counted for counted, _ in pipeline],
    tensor_ms={(counted.rate_mbit, counted.delay_ms): ms for counted, ms in tensor},
    pipeline_ms={(counted.rate_mbit, counted.delay_ms): ms for counted, ms in pipeline},
)
parts = {"TP=2": tensor[0][0].per_token(node=0), "PP=2": pipeline[0][0].per_token(node=0)}
plots.bars("What node 0 sends for one token", parts, y="bytes")

# %% [markdown]
# **Exercise 6.** How many times as many bytes per token did node 0 send with TP=2 as with PP=2? Take the row `bytes` of
# the two tables.

# %%
sent_ratio = ...  # times
# BEGIN SOLUTION
if is_shaped:
    sent_ratio = tensor[0][0].sent[0].bytes / pipeline[0][0].sent[0].bytes
# END SOLUTION
lab.sent_ratio.check(sent_ratio)
# lab.sent_ratio.hint()
# lab.sent_ratio.solution()

# %% [markdown]
# ## 6. Which survives
#
# Beside each measurement stands what `cost.py` predicted from the model's shape and the link, before anything ran. It
# is nearest where the delay is long, for that adds up exactly. It is too good in two places. With no delay it takes 50
# µs for a trip between two quiet machines; here two ranks, the threads that send for them, this notebook and the
# frames' own way share the cores, and a message may wait longer for a core than for the link. And it counts payload
# only, so a narrow link is slower than it says.

# %%
rows = []
for (counted, ms), (other, other_ms) in zip(tensor, pipeline, strict=True):
    both = [each.predicted for each in (counted, other)]
    predicted = [f"{cost_of.seconds_per_token * 1e3:.0f}" if cost_of else "–" for cost_of in both]
    rows.append((counted.link.name, f"{ms:.0f}", predicted[0], f"{other_ms:.0f}", predicted[1]))
Table("ms per token", ("the link", "TP=2: measured", "predicted", "PP=2: measured", "predicted"), tuple(rows))

# %%
speeds = {}
for name, found in (("TP=2", tensor), ("PP=2", pipeline)):
    free = [(counted, ms) for counted, ms in found if counted.rate_mbit is None]
    speeds[f"{name}, measured"] = [(counted.delay_ms, 1e3 / ms) for counted, ms in free]
    foretold = [(counted.delay_ms, counted.predicted) for counted, _ in free if counted.predicted]
    speeds[f"{name}, predicted"] = [(delay_ms, 1 / cost_of.seconds_per_token) for delay_ms, cost_of in foretold]
plots.lines("A slower link, no limit on its rate", speeds, x="delay, one way (ms)", y="tokens/s", log_y=True)

# %% [markdown]
# **Exercise 7.** How many one-way trips does a token of PP=2 wait for? Take your figures: what it takes more with the
# longest delay than without any, divided by that delay. (For TP=2 the same division gives about 4 for each all-reduce.)

# %%
pipeline_trips = ...  # trips
# BEGIN SOLUTION
if is_shaped:
    at = {counted.delay_ms: ms for counted, ms in pipeline if counted.rate_mbit is None}
    pipeline_trips = (at[max(at)] - at[min(at)]) / max(at)
# END SOLUTION
lab.pipeline_trips.check(pipeline_trips)
# lab.pipeline_trips.hint()
# lab.pipeline_trips.solution()

# %% [markdown]
# **Exercise 8.** With the longest delay and no limit on the rate, what makes TP=2 slow? Type the sentence or its
# letter.

# %%
why_slow = ...
# BEGIN SOLUTION
why_slow = "b"
# END SOLUTION
lab.why_slow.check(why_slow)
# lab.why_slow.hint()
# lab.why_slow.solution()

# %% [markdown]
# **Exercise 9.** The narrow link has no delay, and tensor parallel is slow on it as well, for another reason. How long
# do the bytes of one token take at least to leave node 0 through it? Here is what was counted:

# %%
tensor[-1][0]

# %%
narrow_floor = ...  # ms
# BEGIN SOLUTION
if is_shaped:
    narrow_floor = tensor[-1][0].sent[0].bytes / tensor[-1][0].output_tokens * 8 / (slow_mbit * 1e6) * 1e3
# END SOLUTION
lab.narrow_floor.check(narrow_floor)
# lab.narrow_floor.hint()
# lab.narrow_floor.solution()

# %% [markdown]
# ## 7. Two machines with eight GPUs each
#
# The chapter's 70B model on its 16 GPUs, NVLink within a machine and Ethernet of 10 Gbit/s between: the machine is
# made up and nothing runs on it, the prediction is the one that you have just compared with what really happened. It
# has never been held to real GPUs; trust the order and not the milliseconds.

# %%
gpus = tuple(Gpu(i, "NVIDIA A100-SXM4-80GB", 80 << 30, 80 << 30, "8.0") for i in range(8))
nvlink = tuple(GpuLink(first, second, "NVLink", True) for first, second in combinations(range(8), 2))
a100s = replace(lac.Machine.now(), backend="cuda", gpus=gpus, gpu_links=nvlink, environment={})
llama_70b = replace(
    BUILT_IN["smollm2-135m"].shape, num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, head_dim=128,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False,
)  # fmt: skip
ethernet = links.network(10_000)
rows = []
for tensor_size, stages in ((16, 1), (8, 2), (1, 16)):
    plan = lac.ServePlan(
        model="llama-70b", tensor_parallel_size=tensor_size, pipeline_parallel_size=stages, nnodes=2, dtype="bfloat16"
    )
    token = cost.predict(plan, llama_70b, a100s, ethernet)
    figures = (token.seconds_per_token, token.communication_seconds)
    rows.append((plan.label, *(f"{each * 1e3:.1f}" for each in figures), f"{token.bytes_on_the_wire / 1e3:,.0f}"))
predictions = Table(
    "70B on 2 x 8 A100, predicted",
    ("split", "ms per token", "of them between ranks", "kB over the network"),
    tuple(rows),
)

# %% [markdown]
# **Exercise 10.** Which split answers one user soonest? Decide first, then show `predictions` in the cell below it.

# %%
sixteen = ...
# BEGIN SOLUTION
sixteen = "TP=8 x PP=2"
# END SOLUTION
lab.sixteen.check(sixteen)
# lab.sixteen.hint()
# lab.sixteen.solution()

# %%
predictions if sixteen is not ... else "decide first"

# %% [markdown]
# ## 8. Cut the cable
#
# The pipeline still serves. In a moment it gets a long request, and two seconds into the answer the cable between the
# nodes is cut: every interface stays up, and nothing arrives.
#
# **Exercise 11.** When is the client told? Predict it; the check comes after the cut.

# %%
cut_noticed = ...
# BEGIN SOLUTION
cut_noticed = "after about 5 seconds"
# END SOLUTION
lab.cut_noticed

# %%
failures, cut_at = [], []


def cut():
    two.cut()
    cut_at.append(time.monotonic())


if is_shaped:
    pipeline_server.memory()  # afterwards there is nothing to measure
    scissors = threading.Timer(2.0, cut)
    scissors.start()
    try:
        pipeline_server.complete("Once upon a time", max_tokens=900, ignore_eos=True)
    except ServerError as error:
        client_seconds = time.monotonic() - cut_at[0]
        print(f"the client, {client_seconds:.1f} s after the cut: {str(error).splitlines()[0]}")
    while pipeline_server.is_running() and time.monotonic() - cut_at[0] < 60:
        time.sleep(0.1)
    seconds = time.monotonic() - cut_at[0]
    said = how_it_ended(pipeline_server.run)
    print(f"the launcher, {seconds:.1f} s after the cut: {said.cause}")
    failures.append(
        Failure(
            name="link-cut", how="lost while serving", cause="the link was cut", message=said.cause, seconds=seconds,
            plan=pipeline_server.plan, rank=said.rank, run_id=pipeline_server.run.id,
        )
    )  # fmt: skip
else:
    print("loopback addresses have no cable that could be cut")

# %%
lab.cut_noticed.check(cut_noticed)
# lab.cut_noticed.hint()
# lab.cut_noticed.solution()

# %% [markdown]
# The client gets an error in the words of vLLM, the launcher knows which rank, which node and why. Who watched was the
# heartbeat, the frames that you saw on the idle link; the collective itself would have waited for minutes.
#
# Mending the cable brings no server back: its ranks ended, so that nobody waits for them. The nodes are whole again,
# and the next server would start on them. Here they go down, with everything on them; harmless if you do it twice.

# %%
if is_shaped:
    two.mend()
print(two)
pipeline_server.stop()
two.down()

# %% [markdown]
# ## 9. On two real machines
#
# The same plan with the address of the first machine; each prints its own command. On node 0 type the first, on node 1
# the second, within two minutes of each other. `localai-clusters preflight --live` with the same flags looks first: who
# answers, at which address, and what a message costs on your network. There `lac.traffic(server)` reads the counters of
# this machine's interface, and cannot tell the server's frames from others.

# %%
real = lac.ServePlan(model=model, pipeline_parallel_size=2, nnodes=2, master_addr="192.168.1.10")
print(real.serve_command(0), real.serve_command(1), sep="\n\n")

# %% [markdown]
# **Exercise 12.** A colleague has two machines with four GPUs each and 1 Gbit/s between them, and typed
# `--tensor-parallel-size 8`. What do you advise, and which of your figures shows it? Forty words or more; a person
# reads them.

# %%
advice = ...
# BEGIN SOLUTION
advice = (
    "Use TP=4 inside each machine and PP=2 across: with tensor parallel over the link every token waits for four trips "
    "in each of 61 all-reduces, while a pipeline waited for about six trips in all. In my figures TP=2 fell below one "
    "token per second at 5 ms, and PP=2 made several."
)
# END SOLUTION
lab.advice.check(advice)

# %% [markdown]
# ## The record

# %%
lab.summary()

# %%
recorded = lab.record(
    servers=[tensor_server, pipeline_server],
    failures=failures,
    traffic=[counted.observed for counted, _ in (*tensor, *pipeline) if counted.observed],
    constraints=[f"Both nodes were on one machine ({two.kind}); software made and shaped the link between them."],
)
recorded
