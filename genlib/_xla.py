"""Right sums on CPUs: what some releases of jaxlib get wrong, switched off.

jaxlib 0.10.2, 0.11.0 and 0.11.1 hand reductions on CPUs to a library, YNNPACK. There a
sum of a broadcast array differs from call to call (github.com/tensorflow/tensorflow,
issue 126812), and in 0.10.2 a sum behind a matrix product can be wrong
(github.com/jax-ml/jax, issue 39103) and one of a product can end the process (issues
39257 and 40412). 0.9.2, 0.10.0, 0.10.1 and 0.12.0 compute the examples of the first two
right, and so do the three with this flag, with which 0.10.2 survives the other two.
"""

import os
from importlib.metadata import version

_WRONG = ("0.10.2", "0.11.0", "0.11.1")
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def keep_sums_right() -> None:
    """Add the flag to `XLA_FLAGS` where it is needed, before JAX reads them.

    JAX reads them when it first computes; an array made before `import genlib` is too
    early. It is `import genlib` that calls this.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if (more := with_right_sums(flags, version("jaxlib"))) != flags:
        os.environ["XLA_FLAGS"] = more


def with_right_sums(flags: str, jaxlib: str) -> str:
    """Return XLA's flags with those that this release of jaxlib needs.

    Flags that say themselves what YNNPACK shall do are left alone.

    >>> with_right_sums("", "0.10.2")
    '--xla_cpu_experimental_ynn_fusion_type=-reduce'
    >>> with_right_sums("--xla_dump_to=here", "0.12.0")
    '--xla_dump_to=here'
    """
    if jaxlib not in _WRONG or _FLAG in flags:
        return flags
    return f"{flags} {_FLAG}=-reduce".strip()
