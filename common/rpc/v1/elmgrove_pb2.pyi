from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrustRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrustReply(_message.Message):
    __slots__ = ("root_der",)
    ROOT_DER_FIELD_NUMBER: _ClassVar[int]
    root_der: bytes
    def __init__(self, root_der: _Optional[bytes] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("token", "signing_csr_der", "transport_csr_der")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNING_CSR_DER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_CSR_DER_FIELD_NUMBER: _ClassVar[int]
    token: str
    signing_csr_der: bytes
    transport_csr_der: bytes
    def __init__(self, token: _Optional[str] = ..., signing_csr_der: _Optional[bytes] = ..., transport_csr_der: _Optional[bytes] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("consortium", "owner_uri", "signing_certificate_der", "transport_certificate_der", "root_der", "log_key", "receipt")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    OWNER_URI_FIELD_NUMBER: _ClassVar[int]
    SIGNING_CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    ROOT_DER_FIELD_NUMBER: _ClassVar[int]
    LOG_KEY_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    owner_uri: str
    signing_certificate_der: bytes
    transport_certificate_der: bytes
    root_der: bytes
    log_key: str
    receipt: Receipt
    def __init__(self, consortium: _Optional[str] = ..., owner_uri: _Optional[str] = ..., signing_certificate_der: _Optional[bytes] = ..., transport_certificate_der: _Optional[bytes] = ..., root_der: _Optional[bytes] = ..., log_key: _Optional[str] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("index", "entry", "tlog_proof")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    TLOG_PROOF_FIELD_NUMBER: _ClassVar[int]
    index: int
    entry: bytes
    tlog_proof: bytes
    def __init__(self, index: _Optional[int] = ..., entry: _Optional[bytes] = ..., tlog_proof: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("consortium", "owner_uri", "now", "anchors", "experts", "certificates", "uploads", "models", "checkpoint", "quota")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    OWNER_URI_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    owner_uri: str
    now: int
    anchors: _containers.RepeatedCompositeFieldContainer[Anchor]
    experts: _containers.RepeatedCompositeFieldContainer[Expert]
    certificates: _containers.RepeatedCompositeFieldContainer[Certificate]
    uploads: _containers.RepeatedCompositeFieldContainer[OpenUpload]
    models: _containers.RepeatedCompositeFieldContainer[ModelUse]
    checkpoint: bytes
    quota: Quota
    def __init__(self, consortium: _Optional[str] = ..., owner_uri: _Optional[str] = ..., now: _Optional[int] = ..., anchors: _Optional[_Iterable[_Union[Anchor, _Mapping]]] = ..., experts: _Optional[_Iterable[_Union[Expert, _Mapping]]] = ..., certificates: _Optional[_Iterable[_Union[Certificate, _Mapping]]] = ..., uploads: _Optional[_Iterable[_Union[OpenUpload, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelUse, _Mapping]]] = ..., checkpoint: _Optional[bytes] = ..., quota: _Optional[_Union[Quota, _Mapping]] = ...) -> None: ...

class Anchor(_message.Message):
    __slots__ = ("digest", "name", "document", "index", "published_at", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    document: str
    index: int
    published_at: int
    size: int
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ..., document: _Optional[str] = ..., index: _Optional[int] = ..., published_at: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Expert(_message.Message):
    __slots__ = ("name", "version", "manifest", "document", "anchor", "status", "index", "accepted_at", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    manifest: str
    document: str
    anchor: str
    status: str
    index: int
    accepted_at: int
    size: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., manifest: _Optional[str] = ..., document: _Optional[str] = ..., anchor: _Optional[str] = ..., status: _Optional[str] = ..., index: _Optional[int] = ..., accepted_at: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("purpose", "der", "not_after")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    DER_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    purpose: str
    der: bytes
    not_after: int
    def __init__(self, purpose: _Optional[str] = ..., der: _Optional[bytes] = ..., not_after: _Optional[int] = ...) -> None: ...

class OpenUpload(_message.Message):
    __slots__ = ("upload_id", "name", "version", "manifest", "size", "received")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    name: str
    version: int
    manifest: str
    size: int
    received: int
    def __init__(self, upload_id: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[int] = ..., manifest: _Optional[str] = ..., size: _Optional[int] = ..., received: _Optional[int] = ...) -> None: ...

class ModelUse(_message.Message):
    __slots__ = ("manifest", "index", "assembled_at", "experts")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ASSEMBLED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    manifest: str
    index: int
    assembled_at: int
    experts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, manifest: _Optional[str] = ..., index: _Optional[int] = ..., assembled_at: _Optional[int] = ..., experts: _Optional[_Iterable[str]] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("bytes_limit", "bytes_used", "open_uploads_limit")
    BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    OPEN_UPLOADS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    bytes_limit: int
    bytes_used: int
    open_uploads_limit: int
    def __init__(self, bytes_limit: _Optional[int] = ..., bytes_used: _Optional[int] = ..., open_uploads_limit: _Optional[int] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("bundle", "manifest")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    manifest: bytes
    def __init__(self, bundle: _Optional[bytes] = ..., manifest: _Optional[bytes] = ...) -> None: ...

class OfferReply(_message.Message):
    __slots__ = ("upload_id", "missing", "already_accepted", "receipt")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    ALREADY_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    missing: _containers.RepeatedCompositeFieldContainer[ChunkRef]
    already_accepted: bool
    receipt: Receipt
    def __init__(self, upload_id: _Optional[str] = ..., missing: _Optional[_Iterable[_Union[ChunkRef, _Mapping]]] = ..., already_accepted: _Optional[bool] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class ChunkRef(_message.Message):
    __slots__ = ("file", "chunk")
    FILE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    file: int
    chunk: int
    def __init__(self, file: _Optional[int] = ..., chunk: _Optional[int] = ...) -> None: ...

class UploadMessage(_message.Message):
    __slots__ = ("header", "piece")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    piece: UploadPiece
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., piece: _Optional[_Union[UploadPiece, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("upload_id",)
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    def __init__(self, upload_id: _Optional[str] = ...) -> None: ...

class UploadPiece(_message.Message):
    __slots__ = ("file", "chunk", "offset", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: int
    chunk: int
    offset: int
    data: bytes
    def __init__(self, file: _Optional[int] = ..., chunk: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadAck(_message.Message):
    __slots__ = ("file", "chunk")
    FILE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    file: int
    chunk: int
    def __init__(self, file: _Optional[int] = ..., chunk: _Optional[int] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("upload_id",)
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    def __init__(self, upload_id: _Optional[str] = ...) -> None: ...

class AbandonRequest(_message.Message):
    __slots__ = ("upload_id",)
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    def __init__(self, upload_id: _Optional[str] = ...) -> None: ...

class AbandonReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("sha256", "offset", "length")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    offset: int
    length: int
    def __init__(self, sha256: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class DownloadPiece(_message.Message):
    __slots__ = ("data", "size")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    size: int
    def __init__(self, data: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointReply(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    def __init__(self, checkpoint: _Optional[bytes] = ...) -> None: ...

class ConsistencyRequest(_message.Message):
    __slots__ = ("old_size",)
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    old_size: int
    def __init__(self, old_size: _Optional[int] = ...) -> None: ...

class ConsistencyReply(_message.Message):
    __slots__ = ("proof", "checkpoint")
    PROOF_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: bytes
    def __init__(self, proof: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class InclusionRequest(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class EntriesRequest(_message.Message):
    __slots__ = ("start", "limit")
    START_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    start: int
    limit: int
    def __init__(self, start: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class EntriesReply(_message.Message):
    __slots__ = ("entries", "size")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    size: int
    def __init__(self, entries: _Optional[_Iterable[bytes]] = ..., size: _Optional[int] = ...) -> None: ...

class DocumentRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    def __init__(self, sha256: _Optional[str] = ...) -> None: ...

class DocumentReply(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class RegisterWitnessRequest(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    def __init__(self, envelope: _Optional[bytes] = ...) -> None: ...

class CosignRequest(_message.Message):
    __slots__ = ("size", "cosignature")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COSIGNATURE_FIELD_NUMBER: _ClassVar[int]
    size: int
    cosignature: str
    def __init__(self, size: _Optional[int] = ..., cosignature: _Optional[str] = ...) -> None: ...

class CosignReply(_message.Message):
    __slots__ = ("published",)
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    published: bool
    def __init__(self, published: _Optional[bool] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    def __init__(self, envelope: _Optional[bytes] = ...) -> None: ...
