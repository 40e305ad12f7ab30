# %% [markdown]
# # Lab 7.3: Break it
#
# A launch on eight GPUs fails, eight ranks print four hundred lines each, and one of these lines is the cause. This
# lab makes such failures on purpose and for real: nothing here is recorded or simulated, every log is written while
# you wait.
#
# Each failure goes the same way. **Predict** what will happen. **See** it: what preflight says, which looks at
# numbers and starts nothing, and what torchrun and vLLM say, which find out by running into it. **Repair** it. At the
# end one plan with all of your repairs is served, you kill one of its ranks under a waiting client, and then you get
# logs to diagnose by yourself.
#
# Two cores are enough, or two GPUs. It takes 2 to 4 minutes of machine time.

# %% tags=["parameters"]
student: str = "student"  # your id; it decides what is wrong in the logs at the end
for_real: str = "all"  # "all": every failure is launched; "some": the quick ones, the others only meet preflight

# %%
import socket

import localai_clusters as lac
from localai_clusters.errors import PlainError

lab = lac.open_lab("07/3", student=student)
everything = for_real == "all"
free = {"port": 0, "master_port": 0, "max_model_len": 2048}  # 0: any free port
machine = lac.Machine.now()
lab.given(devices=machine.devices)
print(f"{machine.devices} {'GPUs' if machine.gpus else 'cores'} here")

# %% tags=["exercises"]
from localai_clusters.exercises import Check, Choice, Number, Several, Text
from localai_clusters.plan import ServePlan

ci = {"for_real": "some"}

FIRST = (
    "none: torchrun ends before a rank begins",
    "always rank 0",
    "now one, now another: whichever is quicker",
    "none: they wait for each other for minutes",
)


def refusal(plan):
    """What preflight refuses ``plan`` for, but for the ports, which may be in use by now."""
    from localai_clusters.preflight import preflight

    failed = preflight(plan).failed
    return f"preflight still refuses it: {failed[0].check}: {failed[0].message}" if failed else None


who_heads = Choice(
    "9 heads on 2 ranks, launched ten times without preflight: which rank fails first?",
    options=FIRST,
    answer="now one, now another: whichever is quicker",
    why_not={
        "none: torchrun ends before a rank begins": "torchrun starts processes. What does it know of a model?",
        "always rank 0": "Is there anything about the heads that the other rank would have to hear from rank 0?",
        "none: they wait for each other for minutes": "Look at how long the launch lasted.",
    },
    hints=(
        "Every rank gets the same flags and reads the same config.json.",
        "Each divides 9 by 2 by itself. Launch it again and see who is first this time.",
    ),
    solution="Each rank reads config.json and its flags by itself and does the same division, 9 / 2. Whoever comes "
    "to it first fails and tells the others, which end before they get there. Two launches, two different first "
    "ranks, one cause: such an error is about the plan, not about a rank or its machine.",
)
fitting = Several(
    "Which of these tensor-parallel sizes fit 9 attention heads, 3 KV heads and 1536 MLP columns?",
    options=("1", "2", "3", "4", "9"),
    answer=("1", "3"),
    why_not={
        "2": "9 heads do not make two equal shares.",
        "4": "9 heads do not make four equal shares.",
        "9": "The heads would divide, and the KV heads would be copied. What about the MLP's columns?",
    },
    hints=(
        "Each rank gets an equal share of the heads, and of the columns of the MLP.",
        "KV heads may be copied when there are more ranks than KV heads; columns may not. 1536 = 2**9 x 3.",
    ),
    solution="Heads must divide (1, 3, 9), KV heads must divide or be divided (1, 3, 9), and so must the 1536 "
    "columns of the MLP: 1536 / 9 is not whole. That leaves 1 and 3.",
)


def right_heads(plan):
    if plan.world_size != 2:
        return f"it has {plan.world_size} ranks; keep 2"
    if not plan.model.startswith("smollm2-135m"):
        return "it is another model; keep this one, as published or padded"
    return refusal(plan)


repaired_heads = Check(
    "A plan for two ranks that this model can be served with",
    test=right_heads,
    kind=ServePlan,
    answer=ServePlan(tensor_parallel_size=2, port=0, master_port=0, max_model_len=2048),
    hints=(
        "There are two ways to cut a model in two, and heads matter to one of them only.",
        "pipeline_parallel_size=2 of the same model, or the padded form smollm2-135m with tensor_parallel_size=2.",
    ),
    solution="ServePlan(model='smollm2-135m-published', pipeline_parallel_size=2, **free) cuts between layers and "
    "leaves the heads alone; ServePlan(model='smollm2-135m', tensor_parallel_size=2, **free) is the form that was "
    "padded to 12 heads.",
)
stages = Number(
    "torchrun --nnodes=2 --nproc_per_node=8 ... --tensor-parallel-size 8: which --pipeline-parallel-size adds up?",
    answer=2,
    unit="stages",
    mistakes={"then the split would need 8 ranks, and torchrun starts more": 1,
              "the nodes are counted already in the pipeline's stages: ranks = TP x PP, and nothing more": 16},
    hints=("torchrun starts nnodes x nproc_per_node ranks.", "16 ranks = 8 x ?"),
    solution="2 x 8 = 16 ranks, and the split must need as many: tensor 8 x pipeline 2 = 16. With the default of 1 "
    "stage, eight ranks would have no place in the split.",
)  # fmt: skip
most_ranks = Number(
    "How many ranks may a plan have on this machine, each with a device of its own?",
    answer=lambda given: given.devices,
    unit="ranks",
    hints=("preflight's check `devices` counts them.", "On CPUs a device is a core, on GPUs a GPU."),
    solution="As many as there are devices: a rank that computes keeps its core, or its GPU, to itself.",
)
lie_noticed = Choice(
    "config.json declares 8-bit weights, the file holds 16-bit ones. When does vLLM notice?",
    options=(
        "while a rank reads its configuration, within seconds",
        "while a rank loads its weights, tensor by tensor",
        "at the first request, which fails",
        "never: it serves, and answers nonsense",
    ),
    answer="never: it serves, and answers nonsense",
    why_not={
        "while a rank reads its configuration, within seconds": "config.json is in order. It is the weights that do "
        "not agree with it.",
        "while a rank loads its weights, tensor by tensor": "A tensor of that name and shape is there. Did it end?",
        "at the first request, which fails": "Look at the answer: is it an error?",
    },
    hints=(
        "Read what the server answered. Did anybody call that an error?",
        "A 16-bit weight is a number like 0.03. What is left of it as a whole number?",
    ),
    solution="config.json decides which layers vLLM builds: 8-bit ones, with a scale for each row. The loader finds "
    "a tensor of the right name and shape and makes whole numbers of it, nearly all 0; scales it finds none. vLLM "
    "0.32 asks whether every weight was loaded only of models that are not quantized "
    "(model_loader/default_loader.py). The health check passes. So ask a question whose answer you know before you "
    "call a server ready.",
)
largest_tensor = Number(
    "Qwen2.5-72B has an MLP of 29,568 columns and 64 heads with 8 KV heads. Packed in groups of 128, what is the "
    "largest of TP=1, 2, 4, 8 that gives each rank whole groups?",
    answer=1,
    unit="ranks",
    mistakes={"the heads allow it; count the groups too": 8, "do 231 groups make two equal shares?": 2,
              "do 231 groups make four equal shares?": 4},
    hints=("29,568 / 128 groups; each rank must get a whole number of them.", "231 = 3 x 7 x 11"),
    solution="29,568 / 128 = 231 groups, an odd number: not even two ranks can share them. That is why its "
    "quantized forms are padded to 29,696 columns, 232 = 8 x 29 groups.",
)  # fmt: skip
who_port = Choice(
    "The HTTP server's port is taken by another process, and the plan is launched ten times: which rank fails first?",
    options=FIRST,
    answer="always rank 0",
    why_not={
        "none: torchrun ends before a rank begins": "torchrun takes --master-port. Who takes --port?",
        "now one, now another: whichever is quicker": "Who of the ranks talks HTTP?",
        "none: they wait for each other for minutes": "Look at how long the launch lasted, or would have.",
    },
    hints=("Only one rank runs the HTTP server.",),
    solution="Rank 0 alone listens on --port. It fails, and the other ranks lose it: their messages are echoes, and "
    "only one log holds the cause. --master-port is torchrun's: taken, no rank begins.",
)


def right_ports(plan):
    from localai_clusters.machine import port_holder

    for name, port in (("port", plan.port), ("master_port", plan.master_port)):
        if port and (holder := port_holder("127.0.0.1", port)):
            return f"its {name} {port} is taken by {holder}"
    return None


repaired_ports = Check(
    "A plan whose two ports are free while the others are held",
    test=right_ports,
    kind=ServePlan,
    answer=ServePlan(tensor_parallel_size=2, port=0, master_port=0, max_model_len=2048),
    hints=("A port can be asked for by number, or left to the system.", "port=0 and master_port=0: any free one."),
    solution="0 lets the system choose: ServePlan(tensor_parallel_size=2, port=0, master_port=0). A server that "
    "others must find needs a number of its own; then look who holds it first (ss -ltnp).",
)
no_answer = Choice(
    "Node 1 is given a --master-addr at which nobody answers. What does its torchrun do?",
    options=(
        "it ends at once: nobody answers there",
        "it tries again and again, for minutes",
        "it starts its ranks, which fail when they first talk to node 0",
    ),
    answer="it tries again and again, for minutes",
    why_not={
        "it ends at once: nobody answers there": "Node 0 may be started later than node 1, so that "
        "nobody answers is nothing unusual to it.",
        "it starts its ranks, which fail when they first talk to node 0": "Before it starts a rank, torchrun agrees "
        "with the other nodes on who is who.",
    },
    hints=("The nodes of a cluster are never started in the same second.", "What if it failed at once?"),
    solution="The nodes are started by hand or by a script, one after the other, so torchrun tries again until its "
    "time is over: 15 minutes for the first connection (torch 2.13). An address with a typing error looks just like "
    "a node that is not up yet. localai-clusters preflight --live names who is missing after seconds.",
)


def right_context(plan):
    if plan.max_model_len is not None and plan.max_model_len < 8192:
        return f"its context is {plan.max_model_len}; keep 8192 tokens"
    if plan.kv_cache_memory_bytes is None or plan.kv_cache_memory_bytes > 600 << 20:
        return "give it a KV cache of its own, no larger than it needs: kv_cache_memory_bytes below 600 MiB"
    return refusal(plan)


repaired_context = Check(
    "A plan of the same model with a context of 8192 tokens and a KV cache that holds one such request",
    test=right_context,
    kind=ServePlan,
    answer=ServePlan(max_model_len=8192, kv_cache_memory_bytes=256 << 20, port=0, master_port=0),
    hints=(
        "A token takes 2 x 30 layers x 4 KV heads x 64 x 2 bytes, keys and values, in bfloat16, unsplit.",
        "8192 x 30,720 bytes = 240 MiB, and a block that vLLM keeps back.",
    ),
    solution="2 x 30 x 4 x 64 x 2 = 30,720 bytes a token; 8192 tokens take 240 MiB, and vLLM keeps one block back: "
    "kv_cache_memory_bytes=256 << 20 is enough. With TP=2 each rank holds half of the KV heads and needs half of it.",
)
client_gets = Choice(
    "Rank 1 of 2 is killed while a client reads its answer. What does the client get?",
    options=(
        "the rest of the answer, slower: the other rank goes on alone",
        "an error, about at once",
        "nothing, for minutes",
    ),
    answer="an error, about at once",
    why_not={
        "the rest of the answer, slower: the other rank goes on alone": "Half of the model is gone with it.",
        "nothing, for minutes": "That is what a collective does by itself. Something else was faster.",
    },
    hints=("The other rank waits in an all-reduce for a partner that does not come. Who else watches?",),
    solution="The all-reduce itself would wait for minutes. A killed process closes its connections at once: the "
    "heartbeat between the ranks sees it, and torchrun's agent sees its child end. Rank 0 answers its clients with "
    "an error first.",
)
first_rank = Choice(
    "Which rank failed first?",
    options=("rank 0", "rank 1"),
    answer=lambda given: f"rank {given.unknown.first_rank}",
    why_not={"rank 0": "What rank 0 says last: is it its own error, or that it lost somebody?",
             "rank 1": "What rank 1 says last: is it its own error, or that it lost somebody?"},
    hints=(
        "'ending: ...' is what a rank writes that lost another one.",
        "A rank that was killed from outside writes nothing at all: its log just stops.",
    ),
    solution="The first is the one whose end no other rank explains. Who writes 'ending: rank N ...' lost rank N: "
    "an echo. A log with a traceback of its own, or one that simply stops, is where to look.",
)  # fmt: skip
cause = Choice(
    "What was it?",
    options=(
        "a port that was taken",
        "a rank that was killed from outside",
        "heads that do not divide",
        "a quantization that is not there",
        "a node that never came",
    ),
    answer=lambda given: {
        "port-taken": "a port that was taken",
        "killed-at-start": "a rank that was killed from outside",
    }[given.unknown.kind],
    why_not={
        "heads that do not divide": "Is that said in any of these logs?",
        "a quantization that is not there": "Is a tensor named in any of these logs?",
        "a node that never came": "Both ranks were there: each has a log.",
    },
    hints=("Read the end of the log of the rank that failed first.", "Has it an error of its own, or just an end?"),
    solution="An error in the first rank's own log is the cause (an address in use). A log that stops in the "
    "middle, with nothing said, is a process that was ended from outside: torchrun's log (node0.log) says by which "
    "signal.",
)
any_rank = Several(
    "For which of these may any rank be the first to fail?",
    options=("heads that do not divide", "a taken port", "a KV cache too small for the context", "a killed rank",
             "a quantization that is not there"),
    answer=("heads that do not divide", "a KV cache too small for the context",
            "a quantization that is not there"),
    why_not={"a taken port": "One rank listens on a port.", "a killed rank": "The others only lose that one."},
    hints=("What follows from the plan and the model is the same on every rank.",),
    solution="What is wrong with the plan or the model, any rank finds out by itself: heads, context, formats. What "
    "is wrong with one process or one machine, that rank meets and the others only lose it: ports, kills, memory, "
    "cables. So a second launch tells the two apart: does the same rank fail first again?",
)  # fmt: skip
first_look = Text(
    "A colleague sends you eight logs of a launch that failed. What do you look for first, and what then?",
    words=30,
    guide="looks for the first rank that failed by itself and sets echoes apart; then the line of the cause in its "
    "log; then plan or model (any rank could be first) or place (one rank, one machine)",
)

# %% [markdown]
# ## 1. Heads that do not divide
#
# SmolLM2 was published with 9 attention heads and 3 KV heads. Tensor parallelism gives every rank the same number of
# heads. The plan asks for two ranks.

# %%
who_heads = ...  # one of the options: its text, or its letter
# BEGIN SOLUTION
who_heads = "now one, now another: whichever is quicker"
# END SOLUTION
lab.who_heads

# %% [markdown]
# `attempt` asks preflight first. With `for_real=True` it then launches the plan although preflight refuses it, as you
# would without preflight, and waits for what torchrun and vLLM make of it.

# %%
nine_heads = lac.ServePlan(model="smollm2-135m-published", tensor_parallel_size=2, **free)
heads = lac.attempt(nine_heads, "heads-not-divisible", for_real=True)
heads

# %% [markdown]
# The end of each log, as it is; node0.log is torchrun's own. Most of it is how Python got there: the last line of a
# traceback says what happened, the lines above it say where. torchrun names the process that *ended* first, which may
# be one that only followed: exit code 69 is a rank that lost another one.

# %%
heads.tail(8)

# %% [markdown]
# `explain_log` reads all of it and says which line is the cause, why, and what to type.

# %%
lac.explain_log(heads)

# %%
lab.who_heads.check(who_heads)
# lab.who_heads.hint()
# lab.who_heads.solution()

# %%
fitting = ...  # {"1", ...}
# BEGIN SOLUTION
fitting = {"1", "3"}
# END SOLUTION
lab.fitting.check(fitting)
# lab.fitting.hint()
# lab.fitting.solution()

# %% [markdown]
# **Repair.** Make a plan with two ranks that works: cut this model another way, or take its padded form.

# %%
repaired_heads = ...  # lac.ServePlan(..., **free)
# BEGIN SOLUTION
repaired_heads = lac.ServePlan(model="smollm2-135m", tensor_parallel_size=2, **free)
# END SOLUTION
lab.repaired_heads.check(repaired_heads)
# lab.repaired_heads.hint()
# lab.repaired_heads.solution()

# %% [markdown]
# ## 2. Ranks that do not add up
#
# torchrun starts `--nnodes` x `--nproc-per-node` processes and knows nothing of vLLM's split. vLLM needs tensor x
# pipeline of them. Nobody makes the two agree but you.

# %%
one_rank_short = lac.ServePlan(tensor_parallel_size=2, nproc_per_node=1, **free)
world = lac.attempt(one_rank_short, "world-size", for_real=everything)
world

# %%
stages = ...  # a number
# BEGIN SOLUTION
stages = 2
# END SOLUTION
lab.stages.check(stages)
# lab.stages.hint()
# lab.stages.solution()

# %% [markdown]
# Too many ranks for the devices is another matter: the numbers agree, only the machine is too small. On GPUs a rank
# asks for a GPU that is not there and fails. On CPUs nothing fails: ranks that share a core take turns, and while one
# waits in an all-reduce for the other, the other waits for the core. Lab 2 measures what that costs.

# %%
too_many = lac.ServePlan(tensor_parallel_size=4, **free)
crowded = lac.attempt(too_many, "too-many-ranks", for_real=everything and bool(machine.gpus))
crowded

# %%
most_ranks = ...  # a number
# BEGIN SOLUTION
most_ranks = machine.devices
# END SOLUTION
lab.most_ranks.check(most_ranks)
# lab.most_ranks.hint()
# lab.most_ranks.solution()

# %% [markdown]
# ## 3. Quantized or not
#
# `--quantization` says how the weights are packed. It packs nothing itself: with AWQ and GPTQ somebody made another
# checkpoint beforehand. So flag, config.json and weights have to tell the same story.

# %%
flag_lies = lac.ServePlan(quantization="awq", **free)
awq_asked = lac.attempt(flag_lies, "quantized-flag-plain-weights", for_real=everything)
awq_asked

# %% [markdown]
# Now no flag, and a folder that does not agree with itself: a copy of the model whose config.json declares 8-bit
# weights (compressed-tensors), with the 16-bit weights that it always had.

# %%
per_row = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
per_token = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
int8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": per_row, "input_activations": per_token}},
}
folder_lies = lac.ServePlan(model=lac.changed_model("smollm2-135m", quantization_config=int8), **free)

lie_noticed = ...  # one of the options
# BEGIN SOLUTION
lie_noticed = "never: it serves, and answers nonsense"
# END SOLUTION
lab.lie_noticed

# %%
question = "What is tensor parallelism?"
refused = [verdict.check for verdict in lac.preflight(folder_lies).failed]
print("preflight:", ", ".join(refused) or "nothing to object to (it does not compare the weights' types with config.json)")
try:
    with lac.serve(folder_lies, skip_checks=refused) as liar:
        print("the answer:", repr(liar.chat(question, max_tokens=16, logprobs=False).text))
except PlainError as error:
    print(error)

# %%
lab.lie_noticed.check(lie_noticed)
# lab.lie_noticed.hint()
# lab.lie_noticed.solution()

# %% [markdown]
# Packed weights come in groups of rows that share a scale, and a split may cut through a group. vLLM 0.32 does not
# look: its CPU kernel crashes. Here a config.json with 1408 columns, 11 groups of 128, on two ranks.

# %%
gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
eleven_groups = lac.changed_model("smollm2-135m", quantization_config=gptq, intermediate_size=1408)
groups = lac.attempt(lac.ServePlan(model=eleven_groups, tensor_parallel_size=2, **free), "groups-cut-by-the-split")
groups

# %%
largest_tensor = ...  # a number
# BEGIN SOLUTION
largest_tensor = 1
# END SOLUTION
lab.largest_tensor.check(largest_tensor)
# lab.largest_tensor.hint()
# lab.largest_tensor.solution()

# %% [markdown]
# ## 4. Ports and addresses
#
# Two ports are needed: `--port` for clients, `--master-port` for the ranks to find each other. Here another process,
# this notebook, holds both.

# %%
who_port = ...  # one of the options
# BEGIN SOLUTION
who_port = "always rank 0"
# END SOLUTION
lab.who_port

# %%
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
taken, taken_too = (holder.getsockname()[1] for holder in held)
api_port = lac.ServePlan(tensor_parallel_size=2, **free | {"port": taken})
port = lac.attempt(api_port, "port-taken", for_real=everything)
port

# %%
rendezvous_port = lac.ServePlan(tensor_parallel_size=2, **free | {"master_port": taken_too})
master_port = lac.attempt(rendezvous_port, "master-port-taken", for_real=True)
master_port

# %%
lab.who_port.check(who_port)
# lab.who_port.hint()
# lab.who_port.solution()

# %%
repaired_ports = ...  # a plan; both ports above are still held
# BEGIN SOLUTION
repaired_ports = lac.ServePlan(tensor_parallel_size=2, port=0, master_port=0)
# END SOLUTION
lab.repaired_ports.check(repaired_ports)
# lab.repaired_ports.hint()
# lab.repaired_ports.solution()

# %%
for holder in held:
    holder.close()

# %% [markdown]
# `--master-addr` is where node 0 is. With a wrong one this machine is told at once if it is to be node 0, for then
# the address would have to be its own:

# %%
nobody = "192.0.2.77"  # from a range that is kept for examples: no machine has it
two_nodes = lac.ServePlan(tensor_parallel_size=2, nnodes=2, master_addr=nobody, max_model_len=2048, port=0)
lac.attempt(two_nodes, "master-address-node-0")

# %% [markdown]
# As node 1 it cannot know: the address could be node 0's. (Below, the launch is given up after 20 s, by us.)

# %%
no_answer = ...  # one of the options
# BEGIN SOLUTION
no_answer = "it tries again and again, for minutes"
# END SOLUTION
lab.no_answer

# %%
address = lac.attempt(two_nodes, "master-address", for_real=everything, node_rank=1, seconds=20)
address

# %%
lab.no_answer.check(no_answer)
# lab.no_answer.hint()
# lab.no_answer.solution()

# %% [markdown]
# ## 5. A context longer than its cache
#
# One request of 8192 tokens must fit into the KV cache, or it could never be finished. Here the cache has 64 MiB.

# %%
small_cache = lac.ServePlan(max_model_len=8192, kv_cache_memory_bytes=64 << 20, port=0, master_port=0)
context = lac.attempt(small_cache, "context-longer-than-cache", for_real=everything)
context

# %%
repaired_context = ...  # a plan with the same context
# BEGIN SOLUTION
repaired_context = small_cache.with_(kv_cache_memory_bytes=256 << 20)
# END SOLUTION
lab.repaired_context.check(repaired_context)
# lab.repaired_context.hint()
# lab.repaired_context.solution()

# %% [markdown]
# ## 6. All repairs in one plan
#
# Your two ranks, your ports, your cache. What you did not repair is taken from a plan that works.

# %%
def done(exercise):
    return exercise.status == "right"


plan = repaired_heads if done(lab.repaired_heads) else lac.ServePlan(tensor_parallel_size=2, **free)
if done(lab.repaired_ports):
    plan = plan.with_(port=repaired_ports.port, master_port=repaired_ports.master_port)
if done(lab.repaired_context):
    plan = plan.with_(max_model_len=8192, kv_cache_memory_bytes=repaired_context.kv_cache_memory_bytes)
server = lac.serve(plan)
for failure, repair in (
    (heads, lab.repaired_heads),
    (world, lab.stages),
    (port, lab.repaired_ports),
    (master_port, lab.repaired_ports),
    (context, lab.repaired_context),
):
    if done(repair):
        failure.repaired(server)
for prompt in (question, *lab.prompts(count=2)):
    print(server.chat(prompt, max_tokens=24), end="\n\n")

# %% [markdown]
# ## 7. A rank is killed
#
# A client reads a long answer, token by token. After the eighth token the process of rank 1 gets SIGKILL, as the
# kernel sends it when memory runs out.

# %%
client_gets = ...  # one of the options
# BEGIN SOLUTION
client_gets = "an error, about at once"
# END SOLUTION
lab.client_gets

# %%
killed = lac.kill_rank(server, 1)
killed

# %%
lab.client_gets.check(client_gets)
# lab.client_gets.hint()
# lab.client_gets.solution()

# %% [markdown]
# A rank that is *stopped* (SIGSTOP: a debugger, Ctrl-Z, a machine that hangs) is worse. Its connections stay open,
# nothing ends, and every collective waits. Somebody has to notice that nothing happens.

# %%
failures, servers = [killed], [server]
if everything:
    again = lac.serve(plan)
    killed.repaired(again)
    again.complete("Hello", max_tokens=8)
    stopped = lac.kill_rank(again, 1, "stopped-rank", signal_name="SIGSTOP")
    failures, servers = [killed, stopped], [server, again]
    display(stopped)

# %% [markdown]
# ## 8. A log of your own to explain
#
# A launch of two ranks that fails. What is wrong with it depends on your id and is not said. Read the ends of the
# logs: node0.log is torchrun's, the others are the ranks'. One of them failed by itself.

# %%
unknown = lac.mystery(student, lac.ServePlan(tensor_parallel_size=2, **free))
lab.given(unknown=unknown)
unknown.tail(8)

# %%
first_rank = ...  # "rank 0" or "rank 1"
# BEGIN SOLUTION
first_rank = f"rank {unknown.first_rank}"
# END SOLUTION
lab.first_rank.check(first_rank)
# lab.first_rank.hint()
# lab.first_rank.solution()

# %%
cause = ...  # lab.cause shows the options
# BEGIN SOLUTION
cause = {"port-taken": "a port that was taken", "killed-at-start": "a rank that was killed from outside"}[unknown.kind]
# END SOLUTION
lab.cause.check(cause)
# lab.cause.hint()
# lab.cause.solution()

# %% [markdown]
# When you have an answer, compare: `lac.explain_log(unknown)`.
#
# ## 9. What they have in common

# %%
any_rank = ...  # a set; lab.any_rank shows the options
# BEGIN SOLUTION
any_rank = {
    "heads that do not divide",
    "a KV cache too small for the context",
    "a quantization that is not there",
}
# END SOLUTION
lab.any_rank.check(any_rank)
# lab.any_rank.hint()
# lab.any_rank.solution()

# %%
first_look = ...  # a few sentences
# BEGIN SOLUTION
first_look = (
    "First which rank failed by itself. Lines that say a rank was lost are echoes, so I look for the log that has "
    "an error of its own, or that just stops. Then whether any rank could have met that error, which means the plan "
    "or the model, or only this one, which means its process or its machine: a port, memory, a signal."
)
# END SOLUTION
lab.first_look.check(first_look)

# %%
lab.summary()

# %%
tried = [heads, world, crowded, awq_asked, groups, port, master_port, address, context]
failures += [one for one in tried if one.failed]
recorded = lab.record(servers=servers, failures=[one.failure() for one in failures])
recorded
