# %% [markdown]
# # Lab 7.1: Where the memory goes
#
# A server that is split over two ranks holds three things on each: **weights**, a **KV cache**, and what every process needs for
# itself. You predict the first two from the model's shapes, start the ranks, and compare. Then you look at which matrix is cut which
# way on the ranks that run, and watch PagedAttention's blocks fill, wait and empty while requests come and go.
#
# Predict first, then run the cell that measures. About a minute of machine time, 30 of yours. Each exercise has
# `lab.NAME.hint()` and `lab.NAME.solution()`.

# %% tags=["parameters"]
student: str = "student"  # your id; it decides the words in your prompts
model: str = "smollm2-135m"  # a built-in name, a folder or a Hugging Face id
kv_cache_mib: int = 25  # KV cache of each rank, in MiB: small, so that you can fill it
max_model_len: int = 1024  # the longest request, in tokens
max_tokens: int = 48  # of each answer to your own prompts
answer_tokens: int = 100  # of each answer in the experiments with blocks

# %% tags=["exercises"]
from localai_clusters.exercises import Choice, Number, Text
from localai_clusters.sizing import kv_bytes_per_token as kv_of
from localai_clusters.sizing import dtype_of, kv_dtype_of, rank_sizes
from localai_clusters.weight_bytes import DTYPE_BYTES, embedding_parameters

ci = {"max_tokens": 8, "answer_tokens": 20}


def rank0(given):
    return rank_sizes(given.plan, given.shape)[0]


def unsplit(given):
    return rank_sizes(given.plan.with_(tensor_parallel_size=1), given.shape)[0]


def embedding(given):
    return embedding_parameters(given.shape, 1) * DTYPE_BYTES[dtype_of(given.plan, given.shape)]


def kv_unsplit(given):
    return kv_of(given.shape, given.shape.num_hidden_layers, 1, kv_dtype_of(given.plan, given.shape))


def blocks_in_cache(given):
    return given.plan.kv_cache_memory_bytes // (rank0(given).kv_bytes_per_token * given.block_tokens)


def blocks_of(tokens, block_tokens):
    return -(-tokens // block_tokens)


weights_per_rank = Number(
    "Bytes of weights on each of the two ranks",
    answer=lambda given: rank0(given).weights_bytes,
    unit="bytes",
    tolerance=0.02,
    mistakes={
        "that is the whole model; each rank keeps its part of nearly every matrix": lambda given: unsplit(given).weights_bytes,
        "that is half of the matrices and all of the embedding; the vocabulary is shared out too": lambda given: (
            rank0(given).weights_bytes + embedding(given) / 2
        ),
        "the embedding is missing; it is a matrix of vocabulary x hidden size": lambda given: (
            rank0(given).weights_bytes - embedding(given) / 2
        ),
        "that is one layer without the others": lambda given: (
            (rank0(given).weights_bytes - embedding(given) / 2) / given.shape.num_hidden_layers
        ),
    },
    hints=(
        "Add up the parameters of one layer, times the layers, and add the embedding. The output head is the embedding again "
        "(tie_word_embeddings) and counts once. Each parameter takes 2 bytes.",
        "One layer: hidden x (query heads + 2 x KV heads) x head size, query heads x head size x hidden, and three matrices of "
        "hidden x intermediate. Then half of it all.",
    ),
    solution="(layers x (qkv + o + gate + up + down) + vocabulary x hidden) x 2 bytes / 2 ranks. The norms, which every rank "
    "keeps whole, are hidden elements each: too few to see.",
)
kv_bytes_per_token = Number(
    "Bytes of KV cache that one token takes on one rank",
    answer=lambda given: rank0(given).kv_bytes_per_token,
    unit="bytes",
    mistakes={
        "you counted keys or values; both are kept": lambda given: rank0(given).kv_bytes_per_token / 2,
        "that is what both ranks keep together; look at what is cut": lambda given: kv_unsplit(given),
        "that is one layer; every layer keeps its own": lambda given: (
            rank0(given).kv_bytes_per_token / given.shape.num_hidden_layers
        ),
        "the query heads are not kept; only the KV heads are": lambda given: (
            rank0(given).kv_bytes_per_token * given.shape.num_attention_heads / given.shape.num_key_value_heads
        ),
    },
    hints=(
        "Every layer keeps, for each token, a key and a value for each of its KV heads. How many of the KV heads are on one rank?",
        "layers x 2 x (KV heads / ranks) x head size x 2 bytes",
    ),
    solution="layers x 2 (key, value) x KV heads on the rank x head size x bytes. Tensor parallelism shares out the heads, so a "
    "token costs each rank half.",
)
tokens_that_fit = Number(
    "Tokens that requests can keep in this KV cache at one time",
    answer=lambda given: (blocks_in_cache(given) - 1) * given.block_tokens,
    unit="tokens",
    mistakes={
        "not a block more than fits, and one of those is never given to a request": lambda given: (
            blocks_in_cache(given) * given.block_tokens
        ),
        "memory is handed out in whole blocks; what does not make a block is not used": lambda given: (
            given.plan.kv_cache_memory_bytes // rank0(given).kv_bytes_per_token
        ),
        "those are blocks; each holds several tokens": lambda given: blocks_in_cache(given) - 1,
    },
    hints=(
        "How many whole blocks of block_tokens tokens fit into the bytes of one rank? Not of both: every rank keeps a share of "
        "every token.",
        "(whole blocks - 1) x block_tokens. vLLM keeps one block for itself, the null block.",
    ),
    solution="cache bytes of a rank // (bytes per token x tokens per block) blocks, less the null block, times the tokens of one. "
    "The ranks do not add up here: each holds its heads of the same tokens.",
)
while_serving = Choice(
    "While the server answers, what does the memory of a rank do?",
    options=("it grows with every request and falls after it", "it stays nearly the same", "it grows with every token for good"),
    answer="it stays nearly the same",
    why_not={
        "it grows with every request and falls after it": "the blocks do; but when was their memory taken?",
        "it grows with every token for good": "then a server that runs for a week would end; look at the figure below",
    },
    hints=("When does vLLM take the memory of its KV cache: at the start, or with each request?",),
    solution="vLLM takes the whole KV cache at the start and hands out its blocks. What serving adds are small buffers.",
)
rest_of_memory = Choice(
    "Each rank holds far more than weights and KV cache. What is most of the rest?",
    options=(
        "a copy of the other rank's weights",
        "Python, torch and vLLM themselves, in each process anew",
        "the hidden states that the ranks exchange",
    ),
    answer="Python, torch and vLLM themselves, in each process anew",
    why_not={
        "a copy of the other rank's weights": "the weights were measured; they are the bar below",
        "the hidden states that the ranks exchange": "those are tokens in a step x hidden size x 2 bytes: work it out",
    },
    hints=("The same rest is on each rank, and it would be there with a model ten times smaller.",),
    solution="Libraries, their code and their tables are loaded by every process, some 900 MiB each on a CPU. They do not split: "
    "two ranks pay for them twice. On a GPU it is the CUDA context and NCCL's buffers, some hundred MiB of each GPU.",
)
down_proj_cut = Choice(
    "How is down_proj cut, seen as inputs x outputs?",
    options=("by column: each rank computes some of the outputs", "by row: each rank takes some of the inputs", "not at all"),
    answer="by row: each rank takes some of the inputs",
    why_not={
        "by column: each rank computes some of the outputs": "compare its shape on a rank with the whole: which side is shorter?",
        "not at all": "compare its shape on a rank with the whole",
    },
    hints=("gate_up_proj leaves each rank with half of the intermediate values. What of down_proj fits to that half?",),
    solution="gate_up_proj by column leaves each rank half of the intermediate values; down_proj by row needs just that half. So no "
    "rank asks another in between. Each gets a full-sized result that is only part of the sum: hence the all-reduce.",
)
all_reduces = Number(
    "All-reduces in one step through the whole model",
    answer=lambda given: 2 * given.shape.num_hidden_layers + 1,
    unit="all-reduces",
    mistakes={
        "you have those of the layers; one more comes before the first layer": lambda given: 2 * given.shape.num_hidden_layers,
        "each layer has two places where a sum is missing": lambda given: given.shape.num_hidden_layers + 1,
        "each layer has two places where a sum is missing, and there is one before the layers": lambda given: (
            given.shape.num_hidden_layers
        ),
        "not after every matrix: by column, the ranks need nothing of each other": lambda given: (
            4 * given.shape.num_hidden_layers + 1
        ),
    },
    hints=(
        "One after each matrix that is cut by row. How many of those has a layer?",
        "And the embedding: a rank that does not hold a token's row says zero, and the ranks add up.",
    ),
    solution="Two per layer (after o_proj and down_proj) and one after the embedding. Each is a meeting of all ranks: that is "
    "what tensor parallelism costs, and what lab 2 measures.",
)
request_blocks = Number(
    "Blocks that this request holds just before it ends",
    answer=lambda given: blocks_of(given.prompt_tokens + given.answer_tokens - 1, given.block_tokens),
    unit="blocks",
    mistakes={
        "that is the prompt alone; what is generated is kept too": lambda given: blocks_of(given.prompt_tokens, given.block_tokens),
        "a block that is half full is a block": lambda given: (
            (given.prompt_tokens + given.answer_tokens) // given.block_tokens
        ),
        "not doubled by the ranks: each keeps its heads of every block": lambda given: (
            2 * blocks_of(given.prompt_tokens + given.answer_tokens - 1, given.block_tokens)
        ),
    },
    hints=(
        "Prompt and answer are kept, in blocks of block_tokens tokens. The last one may be half full.",
        "(prompt_tokens + answer_tokens) / block_tokens, rounded up",
    ),
    solution="prompt + answer tokens, divided by the tokens of a block, rounded up. (The very last token is never read again and "
    "needs no place.) A request wastes half a block on average; without paging it would keep max_model_len.",
)
second_request = Choice(
    "Two such requests arrive at once. What becomes of the second?",
    options=("it is refused with an error", "it waits until the first gives its blocks back", "both run, each at half the speed"),
    answer="it waits until the first gives its blocks back",
    why_not={
        "it is refused with an error": "a request is refused only if it could never fit",
        "both run, each at half the speed": "count the blocks of both, and those there are",
    },
    hints=("How many blocks does one need, and how many are there?",),
    solution="It would fit by itself, so it is queued. Nothing is computed for it until there are blocks for its whole prompt. That is "
    "why a KV cache that is too small shows as time to first token, not as an error.",
)
prefix_hits = Number(
    "Tokens of the prompt that need not be computed when it is sent once more",
    answer=lambda given: (given.big_tokens - 1) // given.block_tokens * given.block_tokens,
    unit="tokens",
    mistakes={
        "only whole blocks are found again, and at least one token must be computed": lambda given: given.big_tokens,
        "the blocks are not in use any more, but what is in them is still there": 0,
        "those are blocks; how many tokens are in them?": lambda given: (given.big_tokens - 1) // given.block_tokens,
    },
    hints=(
        "A freed block keeps its content until it is needed for something else. What is looked up is the hash of a whole block.",
        "The whole blocks in big_tokens, times block_tokens",
    ),
    solution="(big_tokens - 1) // block_tokens x block_tokens: whole blocks only, and never the last token, for its output is what "
    "comes next. Blocks that requests share count once.",
)
pipeline_surplus = Number(
    "Bytes of weights that the two ranks hold together with PP=2, above those they hold together with TP=2",
    answer=lambda given: sum(
        size.weights_bytes
        for size in rank_sizes(given.plan.with_(tensor_parallel_size=1, pipeline_parallel_size=2), given.shape)
    )
    - sum(size.weights_bytes for size in rank_sizes(given.plan, given.shape)),
    unit="bytes",
    tolerance=0.02,
    absolute=4 << 20,
    mistakes={
        "that is half of it; the matrix is there whole, twice": lambda given: embedding(given) / 2,
        "that is both copies; one of them would be there in any case": lambda given: 2 * embedding(given),
    },
    hints=(
        "A pipeline cuts between layers, so no matrix of a layer is there twice. What stands at both ends of the model?",
        "The first stage looks tokens up in the embedding, the last one needs the output head; here they are one matrix.",
    ),
    solution="vocabulary x hidden size x 2 bytes: the tied embedding is needed whole at both ends. (Less the norms, which "
    "tensor parallelism keeps twice.) The larger the vocabulary beside the layers, the more it shows.",
)
what_halves = Text(
    "A model of 140 GB of weights is to be served on two cards of 80 GB with TP=2. What halves, what does not, and what is the most "
    "KV cache that is left on each card?",
    words=30,
    guide="Weights (70 GB on each) and the KV bytes of a token halve; norms, CUDA context, NCCL's and activations' buffers do not. "
    "10 GB less some GB on each card (and vLLM's gpu_memory_utilization leaves a tenth): a few GB at most.",
)

# %%
from concurrent.futures import ThreadPoolExecutor

import httpx

import localai_clusters as lac
from localai_clusters import plots
from localai_clusters.kv_cache import block_tokens as block_tokens_of
from localai_clusters.models import find

lab = lac.open_lab("07/1", student=student)
plan = lac.ServePlan(
    model=model,
    tensor_parallel_size=2,
    kv_cache_memory_bytes=kv_cache_mib << 20,
    max_model_len=max_model_len,
    port=0,  # any free one
    master_port=0,
)
lab

# %% [markdown]
# ## 1. Predict
#
# These are the model's shapes. Everything you need is here: a layer has four matrices, and with two ranks each holds a part.
#
# | matrix | inputs | outputs |
# |---|---|---|
# | `qkv_proj` | hidden | (query heads + 2 x KV heads) x head size |
# | `o_proj` | query heads x head size | hidden |
# | `gate_up_proj` | hidden | 2 x intermediate |
# | `down_proj` | intermediate | hidden |
#
# Beside the layers there is the embedding, vocabulary x hidden. This model uses it as output head too. A weight takes 2 bytes
# (bfloat16), and so does each number in the KV cache.

# %%
found = find(model)
shape = found.shape
block_tokens = block_tokens_of(plan, shape, lac.Machine.now().backend)
lab.given(plan=plan, shape=shape, block_tokens=block_tokens)
print("layers            ", shape.num_hidden_layers)
print("hidden size       ", shape.hidden_size)
print("intermediate size ", shape.intermediate_size)
print("query heads       ", shape.num_attention_heads)
print("KV heads          ", shape.num_key_value_heads)
print("head size         ", shape.head_dim)
print("vocabulary        ", shape.vocab_size)
print("KV cache          ", plan.kv_cache_memory_bytes, "bytes on each rank")
print("tokens in a block ", block_tokens)

# %%
weights_per_rank = ...  # bytes; a text such as "130 MiB" will do too
# BEGIN SOLUTION
hidden, width = shape.hidden_size, shape.head_dim
qkv = hidden * (shape.num_attention_heads + 2 * shape.num_key_value_heads) * width
o = shape.num_attention_heads * width * hidden
mlp = 3 * hidden * shape.intermediate_size
embedding = shape.vocab_size * hidden * (1 if shape.tie_word_embeddings else 2)
weights_per_rank = (shape.num_hidden_layers * (qkv + o + mlp) + embedding) * 2 / 2
# END SOLUTION
lab.weights_per_rank.check(weights_per_rank)
# lab.weights_per_rank.hint()
# lab.weights_per_rank.solution()

# %%
kv_bytes_per_token = ...  # bytes
# BEGIN SOLUTION
kv_bytes_per_token = shape.num_hidden_layers * 2 * (shape.num_key_value_heads // 2) * shape.head_dim * 2
# END SOLUTION
lab.kv_bytes_per_token.check(kv_bytes_per_token)
# lab.kv_bytes_per_token.hint()
# lab.kv_bytes_per_token.solution()

# %% [markdown]
# vLLM does not hand out memory by the token. It cuts the KV cache into **blocks** of `block_tokens` tokens, as an operating system
# cuts memory into pages, and gives them to requests as they grow: PagedAttention. One block, the *null block*, goes to nobody.

# %%
tokens_that_fit = ...  # tokens, of all requests together
# BEGIN SOLUTION
blocks = plan.kv_cache_memory_bytes // (kv_bytes_per_token * block_tokens)
tokens_that_fit = (blocks - 1) * block_tokens
# END SOLUTION
lab.tokens_that_fit.check(tokens_that_fit)
# lab.tokens_that_fit.hint()
# lab.tokens_that_fit.solution()

# %%
while_serving = ...  # one of the options below
# BEGIN SOLUTION
while_serving = "it stays nearly the same"
# END SOLUTION
lab.while_serving.check(while_serving)
# lab.while_serving.hint()
# lab.while_serving.solution()

# %% [markdown]
# ## 2. Serve, and watch
#
# First what the library says of the plan: its line on memory has figures to hold yours against.

# %%
lac.preflight(plan)

# %% [markdown]
# torchrun starts two ranks of vLLM; rank 0 also answers HTTP. A thread looks at both ten times a second: at the memory that each
# process holds, and at the figures that vLLM publishes at `/metrics`.

# %%
server = lac.serve(plan)
lac.watch_view(server)

# %% [markdown]
# The view above is live in JupyterLab: scroll back to it while the cells below run. Your own prompts first.

# %%
with server.watch(every=0.1) as seen:
    for prompt in lab.prompts():
        seen.mark("prompt sent")
        print(server.chat(prompt, max_tokens=max_tokens))
timelines = list(seen.timelines())
seen.memory()

# %% [markdown]
# What the ranks hold, beside what the library predicted with the same formulas as you. `resident` is all that the process keeps in RAM.
# The KV cache is a little smaller than asked for: whole blocks only. Rank 0 holds more than rank 1, for it is the HTTP server too.

# %%
memory = server.memory()
memory

# %%
held = {}
for rank in memory.ranks:
    total = rank.gpu or rank.resident
    parts = {"weights": rank.weights_measured, "KV cache": rank.kv_cache_measured}
    parts["the rest"] = total - sum(parts.values())
    held[f"rank {rank.rank}"] = {name: size / 2**20 for name, size in parts.items()}
plots.bars("What each rank holds", held, y="MiB")

# %%
print(server.nvidia_smi or "No GPU here: the ranks are processes, and their memory is the machine's.")

# %%
rest_of_memory = ...  # one of the options below
# BEGIN SOLUTION
rest_of_memory = "Python, torch and vLLM themselves, in each process anew"
# END SOLUTION
lab.rest_of_memory.check(rest_of_memory)
# lab.rest_of_memory.hint()
# lab.rest_of_memory.solution()

# %% [markdown]
# ## 3. Which matrix is cut which way
#
# This comes from the ranks that are running: each wrote down the parameters it had loaded, and vLLM's layer class that holds them. All
# layers are alike, so one is drawn. A number in a part says which rank holds it. Open the tables below the drawing for the shapes.
#
# The last line says why a rank holds a little more than half of the model: norms are copied. They are vectors, used on the whole hidden
# state, which every rank has after an all-reduce.

# %%
matrices = server.matrices()
matrices

# %% [markdown]
# Is that really so? Each rank also wrote the SHA-256 of the bytes of its first layer. Here the same columns and rows are cut out of the
# model's file, and hashed.

# %%
matrices.check()

# %%
down_proj_cut = ...  # one of the options below
# BEGIN SOLUTION
down_proj_cut = "by row: each rank takes some of the inputs"
# END SOLUTION
lab.down_proj_cut.check(down_proj_cut)
# lab.down_proj_cut.hint()
# lab.down_proj_cut.solution()

# %% [markdown]
# An **all-reduce** adds up what every rank has and gives all of them the sum. No rank can go on before all have come.

# %%
all_reduces = ...  # in one step through the embedding and all layers
# BEGIN SOLUTION
all_reduces = 2 * shape.num_hidden_layers + 1
# END SOLUTION
lab.all_reduces.check(all_reduces)
# lab.all_reduces.hint()
# lab.all_reduces.solution()

# %% [markdown]
# ## 4. Blocks fill, wait, and empty
#
# Now one long request. The server's own tokenizer says how many tokens its prompt has.

# %%
def tokens_of(prompt):
    body = {"model": plan.served_name, "prompt": prompt}
    return httpx.post(f"{server.url}/tokenize", json=body, timeout=60).json()["count"]


capacity = (server.ranks()[0].facts["kv_cache_blocks"] - 1) * block_tokens
prompt = " ".join(["river"] * (capacity // 3 - 12))
prompt_tokens = tokens_of(prompt)
lab.given(prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
print(f"{prompt_tokens} tokens of prompt and {answer_tokens} to generate")
print(f"{block_tokens} tokens in a block, {capacity} in the cache")

# %%
request_blocks = ...  # blocks
# BEGIN SOLUTION
request_blocks = -(-(prompt_tokens + answer_tokens) // block_tokens)
# END SOLUTION
lab.request_blocks.check(request_blocks)
# lab.request_blocks.hint()
# lab.request_blocks.solution()

# %%
with server.watch(every=0.1) as one:
    one.mark("sent")
    server.complete(prompt, max_tokens=answer_tokens, ignore_eos=True)
    one.mark("answered")
print("blocks in use at most:", one.most_blocks())
timelines += one.timelines()
one.blocks()

# %% [markdown]
# Now two requests that take more than half of the cache each, sent together. Their prompts differ from the first word on.

# %%
words = int(0.52 * capacity)
big = [" ".join([word] * words) for word in ("mountain", "garden")]
big_tokens = tokens_of(big[1])
print(f"each has {big_tokens} tokens of prompt; the cache holds {capacity}")

# %%
second_request = ...  # one of the options below
# BEGIN SOLUTION
second_request = "it waits until the first gives its blocks back"
# END SOLUTION
lab.second_request.check(second_request)
# lab.second_request.hint()
# lab.second_request.solution()

# %%
with server.watch(every=0.1) as two, ThreadPoolExecutor(2) as pool:
    two.mark("both sent")
    asked = [pool.submit(server.complete, each, max_tokens=answer_tokens, ignore_eos=True) for each in big]
    answers = [each.result() for each in asked]
for name, answer in zip(("mountain", "garden"), answers):
    print(f"{name}: {len(answer.token_ids)} tokens after {answer.seconds:.1f} s")
print("most requests that waited:", max(sample.waiting or 0 for sample in two.samples))
timelines += two.timelines()
two.blocks()

# %% [markdown]
# vLLM updates its figures after each step. While it computes a whole prompt, which is one long step, they stand still: that is why the
# second request seems to have no blocks for a while after the first has gone.

# %% [markdown]
# All blocks are free again. Free does not mean empty: vLLM remembers the hash of what is in each whole block. The request that came last
# is sent once more.

# %%
last = max(range(2), key=lambda number: answers[number].seconds)
big_tokens = tokens_of(big[last])
lab.given(big_tokens=big_tokens)
print(f"{big_tokens} tokens of prompt, {block_tokens} in a block")

# %%
prefix_hits = ...  # tokens
# BEGIN SOLUTION
prefix_hits = (big_tokens - 1) // block_tokens * block_tokens
# END SOLUTION
lab.prefix_hits.check(prefix_hits)
# lab.prefix_hits.hint()
# lab.prefix_hits.solution()

# %%
with server.watch(every=0.1) as again:
    known = server.complete(big[last], max_tokens=1)
hits = again.samples[-1].prefix_hits - again.samples[0].prefix_hits
new = server.complete(" ".join(["lantern"] * words), max_tokens=1)
print(f"tokens that vLLM found in its cache: {hits}")
print(f"one token after {known.seconds:.2f} s; of a new prompt as long, after {new.seconds:.2f} s")

# %% [markdown]
# ## 5. The other split
#
# With pipeline parallelism no matrix is cut: the first rank holds the first half of the layers, the second rank the rest.

# %%
pipeline_surplus = ...  # bytes that both ranks together hold more with PP=2 than with TP=2
# BEGIN SOLUTION
pipeline_surplus = shape.vocab_size * shape.hidden_size * 2 if shape.tie_word_embeddings else 0
# END SOLUTION
lab.pipeline_surplus.check(pipeline_surplus)
# lab.pipeline_surplus.hint()
# lab.pipeline_surplus.solution()

# %%
server.stop()
with lac.serve(plan.with_(tensor_parallel_size=1, pipeline_parallel_size=2)) as stages:
    print(stages.chat(lab.prompts()[0], max_tokens=max_tokens))
    pipeline_memory, pipeline_matrices = stages.memory(), stages.matrices()
pipeline_memory

# %%
for name, table in (("TP=2", memory), ("PP=2", pipeline_memory)):
    held = [rank.weights_measured for rank in table.ranks]
    print(name, "holds", " + ".join(f"{size:,}" for size in held), "=", f"{sum(held):,} bytes of weights")
pipeline_matrices

# %% [markdown]
# Each layer is whole on one rank, and no all-reduce is left. What goes from rank 0 to rank 1 is the hidden state of each token, once a
# step. The norms are there once; the embedding is there twice.
#
# ## 6. In your own words

# %%
what_halves = ...  # a few sentences
# BEGIN SOLUTION
what_halves = (
    "The weights halve to 70 GB on each card, and so does the KV cache of a token, for the heads are shared out. The norms, the CUDA "
    "context, the buffers of NCCL and the activations are on each card in full. With 80 GB and 0.9 of it for vLLM, about 2 GB or less "
    "are left for the KV cache."
)
# END SOLUTION
lab.what_halves.check(what_halves)

# %%
lab.summary()

# %% [markdown]
# The record: what ran, what it held, what was watched, and your answers. It goes below `checkpoints/`.

# %%
recorded = lab.record(servers=[server, stages], timelines=timelines)
recorded
