"""The engine under work: offline, under load, with beginnings in common, with drafts, over time.

    python -m experiments.benchmark --config=configs/bench_engine.py --output=docs/benchmarks/engine.json

By default griffin-tiny on two CPU cores, about half an hour; `--config.workloads="('offline',)"` does one
of offline, host, load, serving, conversations, first, forks, speculation and memory. Expected: at least
1.8 times the tokens per second of static batches. `--config=configs/bench_engine.py:9b` is the shape of RecurrentGemma-9B
with drafts, on one H200 or a like GPU: three minutes, mostly compilation; its offline workload takes as
long for each model.
`--config=configs/bench_engine.py:tiny` takes seconds on a CPU.
"""

from ml_collections import ConfigDict, config_dict

from configs import bench_base

# Tokens of each prompt and of what follows it, drawn once: log-uniform from 50 to 4,000 and from 16 to
# 1,024, with Python's random.Random(20).
_DRAWN = """
2645,278 1438,689 156,225 2637,602 616,32 303,998 79,60 3214,104 125,60 2680,65 325,218 1706,124
71,174 58,24 115,286 173,282 102,26 55,301 2157,40 142,17 844,56 91,236 692,103 98,228 571,97
103,762 2196,282 3931,179 227,26 717,139 338,993 1980,26 2408,16 868,59 1224,841 511,382 63,257
84,106 216,22 1321,24 154,23 911,56 61,18 131,132 53,18 928,143 90,59 87,50 274,40 119,41
187,161 2429,237 357,16 114,224 295,542 2683,55 247,55 969,24 168,618 257,904 283,520 379,24
628,39 2791,295 508,742 550,892 1146,34 181,540 77,948 60,362 751,87 697,180 242,52 62,244
2370,76 2147,84 152,447 2898,23 2276,60 1489,54 3832,65 124,20 90,23 1818,17 84,43 93,403 51,272
232,29 137,143 148,81 274,149 1085,54 721,313 183,384 72,125 234,27 898,553 418,70 2636,985
785,165 823,298 995,150 1351,357 846,144 254,39 462,57 394,34 2647,27 2358,169 2699,626 106,50
3942,251 73,48 76,57 70,19 61,114 1136,133 944,243 90,300 452,91 3377,106 1008,406 416,30 115,53
115,85 67,392 1452,226 83,40 2567,607 1212,594 124,53 337,115 246,44 1759,34 613,473 97,65
262,52 2774,618 88,21 678,130 59,583 2325,166 74,36 1958,276 351,781 60,275 1912,496 76,299
592,218 100,878 3480,26 559,149 352,65 142,334 468,105 461,53 2562,390 158,57 517,223 2587,760
66,586 53,177 1470,34 136,22 346,513 50,370 275,785 584,109 175,545 383,291 905,482 183,25
114,212 84,18 234,252 110,54 86,942 2692,969 810,77 168,66 1529,153 89,631 2135,17 75,131
401,498 126,956 230,30 3658,381 1615,33 3422,57 386,601 84,18 748,133 3187,910 247,361 55,316
353,60 175,113 365,58 56,18 55,545 317,108 2779,23 1797,648 329,302 56,82 54,342 3511,756
501,477 968,16 199,24 330,64 56,17 84,167 1966,228 2342,42 149,75 68,141 84,21 1984,45 359,109
61,19 2218,709 1377,109 111,31 493,39 761,987 3095,44 142,19 2871,894 1913,328 680,732 198,124
2803,199 242,36 173,576 684,310 2019,335 511,20 1565,42 110,18 455,220 80,25 372,137 135,693
337,45 1669,410 195,68 325,21 2591,37 130,322 389,242 96,249 3363,908 56,29 130,180 470,119
154,25 379,41 916,942 90,661 2957,80 57,67 154,324 3617,873 130,41 311,46 873,208 52,43 345,92
1294,22 74,83 110,27 3532,279 61,359 84,801 126,63 61,42 91,317 3201,25 151,512 587,522 202,21
348,90 86,222 1257,170 1029,343 2268,302 198,621 2389,549 2819,16 2230,533 219,32 1563,581
314,20 97,56 907,416 78,22 796,105 463,731 53,244 266,161 124,484 292,119 764,90 90,139 91,120
1001,627 480,147 543,167 149,79 68,23 1559,27 60,917 89,25 87,116 571,46 1517,404 386,35 91,624
117,712 236,889 210,323 62,63 1376,664 2448,751 3244,282 346,34 809,402 586,36 737,223 329,35
1309,32 61,273 625,925 188,68 2033,197 2278,473 833,44 445,926 52,249 2627,307 404,229 452,72
3493,698 138,22 1612,113 607,38 3558,728 910,876 74,197 80,566 567,366 326,29 186,172 1071,782
1659,416 2135,73 622,33 253,485 167,39 215,16 173,28 395,40 1906,159 1334,55 609,993 2721,102
830,216 99,604 177,122 71,319 972,869 166,28 72,19 1721,55 99,137 214,717 58,507 1000,782
151,267 61,335 90,19 560,672 1170,426 1111,275 1886,17 167,25 64,722 64,860 174,136 195,203
300,41 66,586 58,304 1931,18 63,69 1264,33 89,277 2160,46 3388,16 421,103 1948,932 571,366
764,26 1966,26 165,762 2861,302 373,55 193,22 59,23 589,181 2994,572 321,22 899,416 138,28
3792,263 236,360 68,47 2682,104 1126,370 939,76 240,114 1252,130 56,101 417,181 347,127 1729,362
191,21 1712,183 53,117 791,977 232,28 347,29 1911,28 3945,18 794,1004 152,55 89,199 780,61
910,160 762,535 318,262 1677,95 560,908 166,76 1205,1020 241,462 70,34 351,57 208,239 1438,197
641,16 2080,333 75,123 96,18 585,218 2141,91 72,56 281,22 3187,58 2094,65 1534,107 191,274
227,81 2657,146 1998,467 1556,628 3128,21 445,205 680,34 473,939 322,50 958,380 741,599 2798,87
1579,701 171,21 1477,466 106,323 478,42 54,26 1846,27 1973,31 126,512 157,99 894,17 80,136
332,76 2182,25 242,139 3596,363 385,991 2857,462 1944,513 135,127 313,53 71,18 104,23 2105,496
834,206 252,26 3036,412 103,223 155,29 227,273 888,256 2090,808 586,993 125,693 286,128 744,119
"""
OFFLINE = tuple(tuple(map(int, pair.split(","))) for pair in _DRAWN.split())


def get_config(size: str = "") -> ConfigDict:
    config = bench_base.base("engine", "" if size == "9b" else size)
    config.accelerator = size == "9b"
    config.isolate = size == ""
    config.repeats = 1
    # MODEL:WEIGHTS[:DTYPE], as in the other benchmarks.
    config.models = ("griffin-tiny:nf4:float32",)
    config.shapes = ConfigDict()
    # Run layers in a loop over groups, as elsewhere.
    config.stack_layers = config_dict.placeholder(bool)
    bench_base.mesh(config)
    # Steps of a dispatch at most.
    config.burst = 32
    # What the engine is put to.
    config.workloads = (
        "offline",
        "host",
        "load",
        "serving",
        "conversations",
        "first",
        "forks",
        "speculation",
        "memory",
    )
    # Texts that are read and written at once, where the workload does not say.
    config.slots = 32
    # Numbers of rows that requests run in offline, under load and served, fewer programs than one for
    # each power of two; none for all of those.
    config.rows = ()
    # Tokens of each prompt and of what follows it, of all offline requests.
    config.offline = OFFLINE
    # Only the first so many of them; None for all.
    config.offline_requests = config_dict.placeholder(int)
    # Rows of the static batches beside it; 0 for none.
    config.static_batch = 32
    # Rows that are full all the time while the host's work is measured.
    config.full = (64, 256)
    # How many requests are on their way at once, and how many arrive in all at least.
    config.concurrent, config.arrivals = (1, 8, 64, 256), 48
    # Tokens of the prompt and of the text of each of those.
    config.arriving = (64, 32)
    # Conversations, turns of each, and tokens: of the system prompt, of what is said and answered.
    config.conversations, config.turns = 200, 8
    # So many of them without a cache, which take longest.
    config.uncached = 8
    config.system, config.said, config.answered = 2000, 40, 24
    # What the prefix cache keeps on the device.
    config.cache_bytes = 2**30
    # Tokens of prompts that no cache knows, and how many of each.
    config.first, config.firsts = (100, 500, 1000, 2000, 4000), 5
    # At multiples of how many tokens those caches keep states; none for a cache's own default.
    config.every = ()
    # Clients of a server, how many answers each asks for, tokens of the prompt and of the answer.
    config.clients, config.rounds, config.served = (1, 8), 2, (64, 64)
    # Tokens of a document, and how many texts go on from it.
    config.document, config.forks = 100_000, 64
    # Tokens of a prompt and of the text after it, with drafts of so many tokens.
    config.speculated, config.draft = (1500, 512), 7
    # A smaller model that drafts, MODEL:WEIGHTS[:DTYPE]; None for looking up alone.
    config.draft_model = config_dict.placeholder(str)
    # Requests over which memory must stay flat.
    config.steady = 10_000
    if size == "9b":
        config.models = ("recurrentgemma-9b:nf4", "recurrentgemma-9b:bfloat16")
        config.workloads = ("speculation",)
        config.slots, config.static_batch = 64, 0
        config.rows, config.clients, config.served = (1, 8, 64, 256), (1, 8, 64, 256), (1024, 256)
    if size == "tiny":
        config.models = ("tiny:float32",)
        config.shapes["wide"] = bench_base.WIDE
        config.slots, config.static_batch, config.burst = 4, 4, 8
        config.full = (4,)
        config.offline = ((5, 3), (40, 20), (9, 2), (3, 12), (20, 4))
        config.concurrent, config.arrivals, config.arriving = (1, 2), 4, (12, 5)
        config.clients, config.served = (1, 2), (12, 5)
        config.conversations, config.turns, config.cache_bytes = 3, 2, 2**20
        config.system, config.said, config.answered = 70, 5, 4
        config.first, config.firsts = (40, 300), 2
        config.document, config.forks, config.speculated = 300, 4, (20, 40)
        config.steady = 20
    return config
