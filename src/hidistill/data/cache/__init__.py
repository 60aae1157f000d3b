"""A folder of latents and conditions, made once and read as a function of the step.

    manifest.json            what the cache was made from, what a row holds, and the size and sum of every file
    null.safetensors         the tensors of the empty prompt, one row; only where prompts are conditions
    train-00000.safetensors  x: latents; label, or cond.text and the like
    train-00000.jsonl        the key, the caption and the label of each row
    valid-..., test-...      the same, and image: the pictures themselves, which metrics need

Shard i of the three parts comes from the same records of the source, `rows` of them in a row: what is written is a
function of the source, and a cache that was stopped anywhere goes on at the first shard that is not there.
"""

from hidistill.data.cache.gathering import Plan
from hidistill.data.cache.manifest import CacheError
from hidistill.data.cache.reading import Cache, Part
from hidistill.data.cache.writing import Progress, Summary, write

__all__ = ["Cache", "CacheError", "Part", "Plan", "Progress", "Summary", "write"]
