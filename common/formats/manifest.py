"""The manifests of the three kinds of folder: anchor, expert package, assembled model (``docs/formats.md``, sections 4 to 6)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, StringConstraints, field_validator, model_serializer, model_validator

from common.formats.fields import Digest, FileName, IdentityUri, Name, TensorName, Text, Timestamp
from common.formats.limits import CHUNK_BYTES, MAX_FILES, MAX_TENSORS
from common.formats.strictjson import Document

__all__ = [
    "MANIFEST_NAME",
    "SIGNATURE_NAME",
    "AnchorManifest",
    "Architecture",
    "ExpertManifest",
    "ExpertSlot",
    "FileEntry",
    "FullKind",
    "LowRankKind",
    "Manifest",
    "MaterialisedTensor",
    "ModelManifest",
    "TensorEntry",
]

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "model.sig"
RESERVED_NAMES = frozenset({MANIFEST_NAME, SIGNATURE_NAME})

DType = Literal["F32", "F16", "BF16"]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**40)]
SummaryValue = Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)] | Annotated[str, StringConstraints(max_length=256)]
SummaryKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class FileEntry(Document):
    """One file: its bytes and those of each 16 MiB chunk, so that an upload is checked as it arrives."""

    name: FileName
    size: Count
    sha256: Digest
    chunks: Annotated[tuple[Digest, ...], Field(max_length=2**20)]

    @model_validator(mode="after")
    def _chunks_cover_the_file(self) -> Self:
        if len(self.chunks) != -(-self.size // CHUNK_BYTES):
            raise ValueError("the number of chunks does not follow from the size")
        return self


class TensorEntry(Document):
    """One tensor: where it lies and the digest of its bytes (little-endian, row-major, as safetensors stores them)."""

    name: TensorName
    dtype: DType
    shape: Annotated[tuple[Positive, ...], Field(max_length=4)]
    sha256: Digest
    file: FileName


class Manifest(Document):
    """What the three manifests share: every file of the folder but the manifest and signature, and every tensor in them."""

    consortium: Name
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1, max_length=MAX_FILES)]
    tensors: Annotated[tuple[TensorEntry, ...], Field(min_length=1, max_length=MAX_TENSORS)]

    @model_validator(mode="after")
    def _tables_are_sorted_and_closed(self) -> Self:
        names = [entry.name for entry in self.files]
        if names != sorted(set(names)) or len({name.lower() for name in names}) != len(names):
            raise ValueError("files are not in ascending order of distinct names")
        if RESERVED_NAMES & set(names):
            raise ValueError("the manifest and the signature may not list themselves")
        places = [(entry.file, entry.name) for entry in self.tensors]
        if places != sorted(set(places)):
            raise ValueError("tensors are not in ascending order of file and name")
        if not {entry.file for entry in self.tensors} <= set(names):
            raise ValueError("a tensor lies in a file that is not listed")
        return self


class Architecture(Document):
    """The shape of an anchor, as in its Hugging Face ``config.json``."""

    model_type: Literal["olmo2"]
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    vocab_size: Positive
    dtype: DType


class AnchorManifest(Manifest):
    """``manifest.json`` of a published anchor; its SHA-256 is *the digest of the anchor*."""

    schema_: Literal["elmgrove.anchor/v1"] = Field(alias="schema")
    name: Name
    architecture: Architecture
    licence: Text
    provenance: Text
    created: Timestamp

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class FullKind(Document):
    """Every FFN matrix is uploaded whole."""

    type: Literal["full"]


class MaterialisedTensor(Document):
    """The digest of one FFN matrix of a low-rank expert once it is materialised (``docs/formats.md``, section 5.1)."""

    name: TensorName
    sha256: Digest


class LowRankKind(Document):
    """Every FFN matrix is the anchor's plus ``B A`` of this rank; ``materialised`` says what that gives, bit for bit."""

    type: Literal["low_rank"]
    rank: Positive
    materialised: Annotated[tuple[MaterialisedTensor, ...], Field(min_length=1, max_length=MAX_TENSORS)]

    @model_validator(mode="after")
    def _table_is_sorted(self) -> Self:
        names = [entry.name for entry in self.materialised]
        if names != sorted(set(names)):
            raise ValueError("the materialised tensors are not in ascending order of distinct names")
        return self


class ExpertManifest(Manifest):
    """``manifest.json`` of an expert package; its SHA-256 is *the digest of the expert*."""

    schema_: Literal["elmgrove.expert/v1"] = Field(alias="schema")
    owner: IdentityUri
    name: Name
    version: Annotated[int, Field(ge=1, le=1_000_000)]
    anchor: Digest
    kind: Annotated[FullKind | LowRankKind, Field(discriminator="type")]
    training: Annotated[dict[SummaryKey, SummaryValue], Field(max_length=64)]
    licence: Text
    permitted_uses: Annotated[tuple[Text, ...], Field(max_length=32)]
    not_after: Timestamp | None
    supersedes: Digest | None
    created: Timestamp

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _first_version_supersedes_nothing(self) -> Self:
        if (self.version == 1) != (self.supersedes is None):
            raise ValueError("version 1 supersedes nothing; every later version names the manifest it supersedes")
        return self


class ExpertSlot(Document):
    """Which signed expert fills one slot of an assembled model; slot 0 is the anchor's public FFN."""

    slot: Annotated[int, Field(ge=1, le=4096)]
    name: Name
    version: Annotated[int, Field(ge=1, le=1_000_000)]
    owner: IdentityUri
    manifest: Digest


class ModelManifest(Manifest):
    """``manifest.json`` of an assembled model. It holds no time and no log position: the same inputs give the same bytes.

    ``tuned_from`` is the digest of the assembled model whose router rows were tuned; the field is absent when they are the owners'.
    """

    schema_: Literal["elmgrove.model/v1"] = Field(alias="schema")
    anchor: Digest
    experts: Annotated[tuple[ExpertSlot, ...], Field(max_length=4096)]
    top_k: Annotated[int, Field(ge=1, le=4097)]
    licence: Text
    tuned_from: Digest | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _slots_are_dense(self) -> Self:
        if [slot.slot for slot in self.experts] != list(range(1, len(self.experts) + 1)):
            raise ValueError("expert slots are not 1, 2, 3 ... in order")
        if len({slot.name for slot in self.experts}) != len(self.experts):
            raise ValueError("an expert fills two slots")
        if self.top_k > len(self.experts) + 1:
            raise ValueError("top_k exceeds the number of experts")
        return self

    @field_validator("tuned_from")
    @classmethod
    def _untuned_is_said_by_absence(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("leave the field out of a model that was not tuned")
        return value

    @model_serializer(mode="wrap")
    def _without_an_absent_field(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = encode(self)
        if self.tuned_from is None:
            del fields["tuned_from"]
        return fields
