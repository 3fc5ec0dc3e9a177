"""JSON schemas that a grammar holds, and those that it does not, with the keyword that is why."""

from __future__ import annotations

from typing import Any

__all__ = ["HELD", "NOT_HELD"]

LIST = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
TREE = {
    "type": "object",
    "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "root": {"type": "null"}},
}
HELD: list[dict[str, Any]] = [
    TREE,
    {**TREE, "$defs": {"root": {"$ref": "#"}}, "title": "T"},
    {"type": "integer", "minimum": 3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 0},
    {"type": "string", "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": "^a[0-9]{2}b$"},
    {"type": "string", "pattern": "^\\d+[\\w.-]?\\S\\$(?:a|b)*$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "null"}, {"const": 7}]},
    {"type": "object", "properties": {"a": {"enum": ["x", 1, None]}}, "required": ["a"], "additionalProperties": False},
    {"$ref": "#/$defs/node", "$defs": {"node": LIST}},
    {"anyOf": [{"const": 'é\\"😀'}, {"type": "null"}]},
    {"allOf": [{"type": "string", "maxLength": 1}]},
    {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"const": 2}}}],
        "$defs": {"a": {"properties": {"x": {"const": 1}}}},
    },
    {"type": ["string", "null"], "maxLength": 2, "title": "T", "description": "d", "default": None},
    {"oneOf": [{"const": 1}, {"const": 2}], "discriminator": {"propertyName": "x"}, "x-order": 1},
    {"type": "object", "properties": {"type": {"const": "x"}, "format": {"const": 1}}, "required": ["type"]},
]
NOT_HELD: list[tuple[dict[str, Any], str]] = [
    ({"type": "number", "minimum": 0.5}, "minimum"),
    ({"type": ["number", "integer"], "minimum": 1}, "minimum"),
    ({"type": "integer", "multipleOf": 5}, "multipleOf"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"const": 1}}, "contains"),
    ({"type": "object", "patternProperties": {"^x": {}}}, "patternProperties"),
    ({"type": "object", "minProperties": 1}, "minProperties"),
    ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "required"),
    ({"not": {"type": "null"}}, "not"),
    ({"if": {}, "then": {}}, "if"),
    ({"type": "string", "format": "email"}, "format"),
    ({"type": "string", "pattern": "abc"}, "pattern"),
    ({"type": "string", "pattern": "^\\ba$"}, "pattern"),
    ({"type": "string", "pattern": "^a$|^b$"}, "pattern"),
    ({"type": "string", "pattern": "^(?<x>a)$"}, "pattern"),
    ({"type": "string", "pattern": "^a$", "maxLength": 3}, "maxLength"),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=a)b$"}}}, "pattern"),
    ({"anyOf": [{"type": "null"}], "minLength": 3}, "minLength"),
    ({"minimum": 3}, "minimum"),
    ({"$ref": "#/$defs/a", "maxLength": 3, "$defs": {"a": {"type": "string"}}}, "maxLength"),
    ({"allOf": [{"type": "string"}, {"maxLength": 2}]}, "allOf"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "array", "items": [{"const": 1}], "minItems": 3}, "minItems"),
    ({"type": "integer", "minimum": 1, "exclusiveMinimum": 5}, "exclusiveMinimum"),
]
