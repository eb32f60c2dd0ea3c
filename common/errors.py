"""The one exception tree of Elmgrove: every failure a person or a peer can cause has a class here.

A class carries an exit code (stable, documented in ``docs/errors.md``), a stable ``code`` that travels over the wire, and a
``public`` text that may be shown to a stranger: it never holds a path, a key or another owner's name. The message given
to the constructor is for the person at this machine and says what is wrong and what to do.

    ElmgroveError
    + UsageError           10-19  what this person or this machine got wrong
    + FormatError          20-29  bytes that are not what they claim to be
    + IdentityError        30-39  who is calling, and whether they may
    + TransportError       40-49  the wire
    + AdmissionError       50-59  an expert the consortium does not take
    + VerificationError    60-79  a signature, a digest, a certificate or the log does not hold
"""

from __future__ import annotations

from typing import ClassVar


class ElmgroveError(Exception):
    """Root of all expected failures. ``str(error)`` is a sentence for the person at this machine."""

    exit_code: ClassVar[int] = 3
    code: ClassVar[str] = "error"
    public: ClassVar[str] = "The request failed."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.public)


# --- 10-19: this person, this machine -------------------------------------------------------------------------------


class UsageError(ElmgroveError):
    """An argument, option or combination of them makes no sense."""

    exit_code = 10
    code = "usage"
    public = "The request makes no sense."


class ConfigError(UsageError):
    """A configuration file is missing, unreadable or has an unknown or wrong key."""

    exit_code = 11
    code = "config"
    public = "A configuration is wrong."


class DataError(UsageError):
    """A data file is missing, unreadable, empty or has no usable text."""

    exit_code = 12
    code = "data"
    public = "A data file cannot be used."


class TextFieldError(DataError):
    """A row has no text under the field that was asked for."""

    exit_code = 13
    code = "text-field"
    public = "A data file lacks the text field."


class ArchitectureError(UsageError):
    """A model folder is of an architecture that Elmgrove cannot use as an anchor or mixture."""

    exit_code = 14
    code = "architecture"
    public = "The model's architecture is not supported."


class PortInUseError(UsageError):
    """The address to listen on is taken or not ours."""

    exit_code = 15
    code = "port-in-use"
    public = "The address is in use."


class StorageError(UsageError):
    """The disk is full, read-only or failing."""

    exit_code = 16
    code = "storage"
    public = "The storage cannot take this now."


class NotFoundError(UsageError):
    """A named thing does not exist."""

    exit_code = 17
    code = "not-found"
    public = "No such thing."


class AlreadyExistsError(UsageError):
    """A thing of that name exists and would be overwritten."""

    exit_code = 18
    code = "already-exists"
    public = "It exists already."


class MissingExtraError(UsageError):
    """An optional part of Elmgrove is not installed."""

    exit_code = 19
    code = "missing-extra"
    public = "An optional part is not installed."


# --- 20-29: bytes -----------------------------------------------------------------------------------------------------


class FormatError(ElmgroveError):
    """A document's bytes do not follow its format."""

    exit_code = 20
    code = "format"
    public = "A document is malformed."


class SafetensorsError(FormatError):
    """A file is not a well-formed safetensors file."""

    exit_code = 21
    code = "safetensors"
    public = "A weights file is malformed."


class LimitError(FormatError):
    """A document is larger, deeper or longer than is accepted from a stranger."""

    exit_code = 22
    code = "limit"
    public = "A document exceeds a limit."


class LayoutError(FormatError):
    """A folder holds a file it must not hold, lacks one it must hold, or holds a link or folder."""

    exit_code = 23
    code = "layout"
    public = "A package's files are not the expected ones."


class InvitationFormatError(FormatError):
    """A string is not an Elmgrove invitation, or was cut or mistyped."""

    exit_code = 24
    code = "invitation-format"
    public = "The invitation is malformed."


# --- 30-39: identity --------------------------------------------------------------------------------------------------


class IdentityError(ElmgroveError):
    """The caller is not who they must be for this."""

    exit_code = 30
    code = "identity"
    public = "The caller may not do this."


class InvitationRefusedError(IdentityError):
    """The invitation is unknown, used, or expired."""

    exit_code = 31
    code = "invitation-refused"
    public = "The invitation is not valid: unknown, already used, or expired."


class RootFingerprintError(IdentityError):
    """The coordinator's root certificate is not the one the invitation names."""

    exit_code = 32
    code = "root-fingerprint"
    public = "The root certificate is not the expected one."


class UnauthenticatedError(IdentityError):
    """The caller showed no certificate of this consortium."""

    exit_code = 33
    code = "unauthenticated"
    public = "A certificate of this consortium is needed."


class ForbiddenError(IdentityError):
    """The caller asked for something that belongs to another owner."""

    exit_code = 34
    code = "forbidden"
    public = "The caller may not act on this."


class KeyStoreError(IdentityError):
    """A private key is missing, unreadable or its passphrase is wrong."""

    exit_code = 35
    code = "key-store"
    public = "A key cannot be opened."


# --- 40-49: transport -------------------------------------------------------------------------------------------------


class TransportError(ElmgroveError):
    """The peer could not be reached or the connection broke."""

    exit_code = 40
    code = "transport"
    public = "The connection failed."


class UnavailableError(TransportError):
    """The coordinator does not answer."""

    exit_code = 41
    code = "unavailable"
    public = "The coordinator is not available."


class ProtocolError(TransportError):
    """A peer sent a message out of order or out of bounds."""

    exit_code = 42
    code = "protocol"
    public = "A message was out of order or out of bounds."


class InternalError(TransportError):
    """The coordinator failed in a way it did not expect."""

    exit_code = 43
    code = "internal"
    public = "The coordinator failed; its operator finds the reason in its log."


class LostProcessError(TransportError):
    """One of the several processes of a training run ended early or does not answer."""

    exit_code = 44
    code = "lost-process"
    public = "A process of the run was lost."


# --- 50-59: admission -------------------------------------------------------------------------------------------------


class AdmissionError(ElmgroveError):
    """The consortium does not take this expert."""

    exit_code = 50
    code = "admission"
    public = "The expert is not accepted."


class WrongAnchorError(AdmissionError):
    """The expert was trained against an anchor that this consortium has not published."""

    exit_code = 51
    code = "wrong-anchor"
    public = "The expert is for another anchor."


class TemplateError(AdmissionError):
    """The expert's tensors are not exactly the anchor's: a name, shape or dtype differs."""

    exit_code = 52
    code = "template"
    public = "The expert's tensors do not match the anchor."


class NonFiniteError(AdmissionError):
    """A tensor holds NaN or infinity."""

    exit_code = 53
    code = "non-finite"
    public = "A tensor holds a value that is not finite."


class VersionError(AdmissionError):
    """The expert's version or supersession does not follow from what is logged."""

    exit_code = 54
    code = "version"
    public = "The expert's version does not follow the logged one."


class QuotaError(AdmissionError):
    """The owner's quota of bytes or concurrent uploads is used up."""

    exit_code = 55
    code = "quota"
    public = "A quota is used up."


class IncompleteUploadError(AdmissionError):
    """The upload was committed before every byte had arrived."""

    exit_code = 56
    code = "incomplete-upload"
    public = "The upload is not complete."


class WithdrawnError(AdmissionError):
    """The expert was withdrawn, has expired, or its owner was revoked."""

    exit_code = 57
    code = "withdrawn"
    public = "The expert is no longer in force."


class MaterialisationError(AdmissionError):
    """A low-rank expert's factors do not give the matrices that its owner signed."""

    exit_code = 58
    code = "materialisation"
    public = "The expert's factors do not give the tensors that its manifest says."


# --- 60-79: verification ----------------------------------------------------------------------------------------------


class VerificationError(ElmgroveError):
    """Something that was claimed does not hold."""

    exit_code = 60
    code = "verification"
    public = "Verification failed."


class SignatureError(VerificationError):
    """A signature does not verify, or a signed document is not of the expected kind."""

    exit_code = 61
    code = "signature"
    public = "A signature does not hold."


class CertificateError(VerificationError):
    """A certificate is not of this consortium, not valid at that time, or not for this purpose."""

    exit_code = 62
    code = "certificate"
    public = "A certificate does not hold."


class SignerError(VerificationError):
    """A valid signature was made by someone who may not say this."""

    exit_code = 63
    code = "signer"
    public = "The signer may not say this."


class DigestError(VerificationError):
    """Bytes do not have the digest that was signed for them."""

    exit_code = 64
    code = "digest"
    public = "A digest does not match."


class LogError(VerificationError):
    """The log's files do not form the log that its checkpoint signs, or an entry breaks the rules."""

    exit_code = 65
    code = "log"
    public = "The log does not hold."


class LogInconsistentError(LogError):
    """The log shows a history that contradicts an earlier checkpoint (a fork or a rollback)."""

    exit_code = 66
    code = "log-inconsistent"
    public = "The log contradicts an earlier checkpoint."


class NotLoggedError(VerificationError):
    """A signed thing has no entry in the log."""

    exit_code = 67
    code = "not-logged"
    public = "There is no log entry for this."


class RevokedError(CertificateError):
    """A certificate was revoked."""

    exit_code = 68
    code = "revoked"
    public = "A certificate was revoked."


class ModelMismatchError(VerificationError):
    """A model's tensors are not those of the anchor and experts it claims to be made of."""

    exit_code = 69
    code = "model-mismatch"
    public = "The model is not made of what it claims."


class QuorumError(VerificationError):
    """A checkpoint lacks the cosignatures that a policy asks for."""

    exit_code = 74
    code = "quorum"
    public = "Too few witnesses have cosigned."


class InterruptedByUserError(ElmgroveError):
    """Ctrl-C or SIGTERM; what was finished is kept and the command can be run again."""

    exit_code = 130
    code = "interrupted"
    public = "Interrupted."
