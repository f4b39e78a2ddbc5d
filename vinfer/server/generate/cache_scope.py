"""Which requests may share the pages of equal beginnings of their prompts.

Pure function, any thread. The engine compares scopes and never sees an API key or a salt by itself.
"""

from __future__ import annotations

import json

from vinfer.server.model_table import PrefixCache


def cache_scope(setting: PrefixCache, *, tenant: str, cache_salt: str | None, request_name: str) -> str:
    """Return the `Request.cache_scope` of all completions of one HTTP request.

    A client could learn from response times what others with the same scope have sent.

    Args:
        setting: `models[].prefix_cache`.
        tenant: see `RequestContext`.
        cache_salt: the field of that name; it narrows the scope in every setting.
        request_name: unique per HTTP request.
    """
    sharers = {"per_key": tenant, "shared": "", "off": request_name}
    # JSON, so that no parts of one scope run together into another, and any salt can be encoded.
    return json.dumps([setting, sharers[setting], cache_salt])
