"""The description of the API that programs read, from the schemas that requests are checked with."""

import dataclasses
import typing
from typing import TYPE_CHECKING, Any

import griffin_jax
from griffin_jax.fields import Bounds, of_optional
from griffin_jax.serving import protocol

if TYPE_CHECKING:
    from griffin_jax.serving.service import Service

_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
_ERRORS = {
    "400": "The request is wrong.",
    "401": "The API key is missing or unknown.",
    "404": "There is no such model or context.",
    "408": "The body came too slowly.",
    "413": "The body, or what is kept, is too large.",
    "429": "Too many requests wait.",
    "500": "The device failed.",
    "503": "The server starts or ends.",
}


def document(service: "Service") -> dict[str, Any]:
    """Returns the OpenAPI document of a server."""
    posts = {
        "/v1/completions": (protocol.Completion, "Texts after prompts."),
        "/v1/chat/completions": (protocol.ChatCompletion, "Answers to a conversation."),
        "/tokenize": (protocol.Tokenize, "Token ids of a text or a conversation."),
        "/detokenize": (protocol.Detokenize, "The text of token ids."),
        "/v1/contexts": (protocol.NewContext, "Reads a text once, and keeps the model's state."),
    }
    paths: dict[str, Any] = {}
    for path, (schema, text) in posts.items():
        paths[path] = {"post": _post(schema, text, "completions" in path)}
    for path, text, kind in (
        ("/v1/models", "The model that is served.", "application/json"),
        ("/tokenizer_info", "The special tokens.", "application/json"),
        ("/health", "Whether requests are taken.", "application/json"),
        ("/version", "Versions.", "application/json"),
        ("/openapi.json", "This document.", "application/json"),
        ("/metrics", "Prometheus' metrics.", "text/plain"),
        ("/", "A page to talk to the model.", "text/html"),
    ):
        paths[path] = {"get": {"summary": text, "responses": _responses(kind)}}
    paths["/v1/contexts"]["get"] = {
        "summary": "The contexts of this key.",
        "responses": _responses("application/json"),
    }
    paths["/v1/models/{name}"] = _named({"get": ("Facts about a model.", "application/json")})
    paths["/v1/contexts/{name}"] = _named(
        {
            "get": ("The file of a context.", "application/octet-stream"),
            "put": ("Takes the file of a context.", "application/json"),
            "delete": ("Forgets a context.", "application/json"),
        }
    )
    paths["/v1/contexts/{name}"]["put"]["requestBody"] = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "griffin_jax", "version": griffin_jax.__version__},
        "paths": paths,
        "components": {"schemas": {"Error": _error_schema()}},
    }
    if service.keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def schema_of(schema: type) -> dict[str, Any]:
    """Returns the JSON schema of a request's dataclass."""
    properties, required = {}, []
    for entry in dataclasses.fields(schema):
        bounds = entry.metadata.get("bounds", Bounds())
        shape = protocol.SHAPES.get(entry.name) or _of_type(entry.type, bounds)
        missing = entry.default is dataclasses.MISSING
        if missing:
            required.append(entry.name)
        properties[entry.name] = shape if missing else {"anyOf": [shape, {"type": "null"}]}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _of_type(kind: Any, bounds: Bounds) -> dict[str, Any]:
    kind, _ = of_optional(kind)
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": _of_type(typing.get_args(kind)[0], Bounds())}
    shape: dict[str, Any] = {"type": _KINDS[kind]}
    names = {
        "minimum": bounds.at_least,
        "exclusiveMinimum": bounds.above,
        "maximum": bounds.at_most,
        "exclusiveMaximum": bounds.below,
    }
    shape |= {name: value for name, value in names.items() if value is not None}
    if bounds.filled:
        shape["minLength"] = 1
    return shape


def _post(schema: type, text: str, streams: bool) -> dict[str, Any]:
    responses = _responses("application/json")
    if streams:
        responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": text,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema_of(schema)}},
        },
        "responses": responses,
    }


def _named(operations: dict[str, tuple[str, str]]) -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    item: dict[str, Any] = {"parameters": [name]}
    for method, (text, kind) in operations.items():
        item[method] = {"summary": text, "responses": _responses(kind)}
    return item


def _responses(kind: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {"200": {"description": "Well.", "content": {kind: {}}}}
    for status, text in _ERRORS.items():
        found[status] = {"description": text, "content": error}
    return found


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    inner = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "object", "required": list(inner), "properties": inner},
        },
    }
