"""Custom resources of the manifests: the API version, and a schema of the fields of `spec` that we use.

Kubernetes drops a misspelt field of these without a word. Written from the published definitions, and
stricter: a field that is not here is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _block(required: str, **fields: Any) -> dict[str, Any]:
    """Return the schema of a mapping with these fields and no others; `required` names them, with spaces."""
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_TEXT = {"type": "string", "minLength": 1}
_LABELS = _block(
    "matchLabels", matchLabels={"type": "object", "additionalProperties": _TEXT, "minProperties": 1}
)
_PORT = _block("number", number={"type": "integer", "minimum": 1, "maximum": 65535})
_COUNT = {"type": "integer", "minimum": 0}
_DURATION = {"type": "string", "pattern": r"^[0-9]+(ms|s|m|h)$"}

_POLICY = _block(
    "type value periodSeconds", type={"enum": ["Pods", "Percent"]}, value=_COUNT, periodSeconds=_COUNT
)
_SCALING = _block(
    "stabilizationWindowSeconds policies",
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=_list(_POLICY),
)
_BEHAVIOR = _block("", scaleUp=_SCALING, scaleDown=_SCALING)
_PROMETHEUS = _block(
    "serverAddress query threshold",
    **dict.fromkeys(("serverAddress", "query", "threshold"), _TEXT),
    ignoreNullValues={"enum": ["true", "false"]},
)
_TRIGGER = _block(
    "type metadata",
    type={"const": "prometheus"},
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=_PROMETHEUS,
)

CUSTOM_RESOURCES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "LeaderWorkerSet": (
        "leaderworkerset.x-k8s.io/v1",
        _block(
            "leaderWorkerTemplate",
            replicas=_COUNT,
            startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
            rolloutStrategy=_block(
                "type",
                type={"const": "RollingUpdate"},
                rollingUpdateConfiguration=_block("", maxUnavailable=_COUNT, maxSurge=_COUNT),
            ),
            leaderWorkerTemplate=_block(
                "size workerTemplate",
                size={"type": "integer", "minimum": 1},
                restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
                # A pod template: `test_group_manifests` compares it with Kubernetes' own.
                workerTemplate={"type": "object"},
            ),
        ),
    ),
    "InferencePool": (
        "inference.networking.k8s.io/v1",
        _block(
            "selector targetPorts endpointPickerRef",
            selector=_LABELS,
            targetPorts={**_list(_PORT), "maxItems": 8},
            endpointPickerRef=_block(
                "name port", name=_TEXT, port=_PORT, failureMode={"enum": ["FailOpen", "FailClose"]}
            ),
        ),
    ),
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1",
        _block(
            "parentRefs rules",
            parentRefs=_list(_block("name", name=_TEXT, namespace=_TEXT)),
            rules=_list(
                _block(
                    "backendRefs",
                    matches=_list(
                        _block(
                            "path",
                            path=_block(
                                "type value",
                                type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                                value={"type": "string", "pattern": "^/"},
                            ),
                        )
                    ),
                    backendRefs=_list(_block("group kind name", group=_TEXT, kind=_TEXT, name=_TEXT)),
                    timeouts=_block("request", request=_DURATION),
                )
            ),
        ),
    ),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        _block(
            "scaleTargetRef triggers",
            scaleTargetRef=_block("name", name=_TEXT),
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            fallback=_block("failureThreshold replicas", failureThreshold=_COUNT, replicas=_COUNT),
            advanced=_block("", horizontalPodAutoscalerConfig=_block("behavior", behavior=_BEHAVIOR)),
            triggers=_list(_TRIGGER),
        ),
    ),
    "PodMonitor": (
        "monitoring.coreos.com/v1",
        _block(
            "selector podMetricsEndpoints",
            selector=_LABELS,
            podMetricsEndpoints=_list(
                _block(
                    "port",
                    port=_TEXT,
                    path={"const": "/metrics"},
                    interval=_DURATION,
                    authorization=_block(
                        "credentials", credentials=_block("name key", name=_TEXT, key=_TEXT)
                    ),
                )
            ),
        ),
    ),
}
