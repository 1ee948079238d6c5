"""Who the job is to OCI: finds credentials in the SDK's order of use and says which ones were found.

Explicit (JOB_OCI_AUTH, OCI_CLI_AUTH), resource principal, instance principal, a profile of the config file: a session
token where the profile has one, else its API key. Tokens renew themselves.
"""

import base64
import functools
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.errors import JobError

os.environ.setdefault("OCI_PYTHON_SDK_NO_SERVICE_IMPORTS", "1")  # before the import: only what is used is loaded
import oci
import oci.auth.signers
import oci.base_client

IMDS = "http://169.254.169.254/opc/v2"
OK = 200
PROBE_SECONDS = 1.0  # the SDK alone would wait for minutes where there is no metadata service
RENEW_SECONDS = 600.0  # before a session token ends
CHASSIS = Path("/sys/class/dmi/id/chassis_asset_tag")  # OracleCloud.com on an instance
DOCTOR = "python -m job doctor SPEC shows what is found"


class AuthError(JobError):
    """No credentials. `final`: asking again would not help."""

    def __init__(self, where: str, what: str, cure: str, *, final: bool = True) -> None:
        super().__init__(where, what, cure)
        self.final = final


@dataclass(frozen=True)
class Credentials:
    """What a client of the SDK takes: Client(config, signer=signer, **options)."""

    found: str
    """For people: 'instance principal', 'API key of profile DEFAULT in ~/.oci/config'."""
    config: dict[str, Any] = field(repr=False)
    signer: Any = field(repr=False)
    region: str | None = None


def find(kind: str | None = None) -> Credentials:
    """Credentials of this kind, or of the first kind that this machine has. AuthError with a cure if there are none."""
    asked = [(kind, "auth"), *((os.environ.get(name), name) for name in ("JOB_OCI_AUTH", "OCI_CLI_AUTH"))]
    for name, where in asked:
        if name:
            if name not in KINDS:
                raise AuthError(where, f"{name} is no way to authenticate", f"use one of {', '.join(sorted(KINDS))}")
            return KINDS[name]()
    if "OCI_RESOURCE_PRINCIPAL_VERSION" in os.environ:
        return _resource_principal()
    status = metadata_status()
    if status == OK or (_is_busy(status) and not _config_path().is_file()):
        return _instance_principal()
    return _config_file()


def metadata_status() -> int | None:
    """What the instance metadata service answers, None where nobody does; known within a second or so.

    Other makers' machines have a service at the same address, which answers 4xx.
    """
    base = os.environ.get("OCI_METADATA_BASE_URL", "").strip()
    if not base and CHASSIS.is_file() and _text(CHASSIS) not in ("", "OracleCloud.com"):
        return None
    request = urllib.request.Request(f"{base or IMDS}/instance/", headers={"Authorization": "Bearer Oracle"})  # noqa: S310
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=PROBE_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _is_busy(status: int | None) -> bool:
    """Something that time may mend."""
    return status is not None and (status == 429 or status >= 500)  # noqa: PLR2004 - HTTP's


def region_override() -> str | None:
    return os.environ.get("OCI_CLI_REGION") or os.environ.get("OCI_REGION") or None


def endpoint_override() -> str | None:
    """Another address for the services, such as a private endpoint or a test's server."""
    return os.environ.get("JOB_OCI_ENDPOINT") or None


class SessionToken(oci.auth.signers.SecurityTokenSigner):  # type: ignore[misc]  # the SDK ships no types
    """Signs with a session token; takes up a newer one from its file, and renews it before it ends."""

    def __init__(self, token_file: Path, key: Any, auth_endpoint: str, shown: str, cure: str) -> None:
        self._file, self._key, self._endpoint, self._shown, self._cure = token_file, key, auth_endpoint, shown, cure
        self._lock = threading.Lock()
        self._tried = 0.0
        self._token, self._changed = self._read()
        super().__init__(self._token, key)

    def __call__(self, request: Any, enforce_content_headers: bool = True) -> Any:
        self._keep_fresh()
        if 0 < expiry(self._token) < time.time():
            raise AuthError(self._shown, "its session has ended, and could not be renewed", self._cure)
        return super().__call__(request, enforce_content_headers)

    def _keep_fresh(self) -> None:
        with self._lock:
            if self._file.exists() and self._file.stat().st_mtime_ns != self._changed:
                self._use(*self._read())
            now = time.time()
            if expiry(self._token) - now < RENEW_SECONDS and now - self._tried > RENEW_SECONDS / 10:
                self._tried = now
                self._renew()

    def _renew(self) -> None:
        """A failure is no error here: the old token may still hold, and if it does not, the service says so."""
        try:
            signer = oci.auth.signers.SecurityTokenSigner(self._token, self._key)
            client = oci.base_client.BaseClient(
                "auth", {}, signer, {}, service_endpoint=self._endpoint, timeout=(5, 10)
            )
            answer = client.call_api(
                resource_path="/v1/authentication/refresh",
                method="POST",
                header_params={"content-type": "application/json"},
                body={"currentToken": self._token},
                response_type="object",
            )
            token = str(answer.data["token"])
            beside = self._file.with_name(f".{self._file.name}.{os.getpid()}.part")
            beside.touch(0o600)
            beside.write_text(token, encoding="utf-8")
            beside.replace(self._file)
            self._use(token, self._file.stat().st_mtime_ns)
        except (oci.exceptions.ServiceError, oci.exceptions.RequestException, OSError, KeyError, TypeError):
            return

    def _read(self) -> tuple[str, int]:
        return self._file.read_text(encoding="utf-8").strip(), self._file.stat().st_mtime_ns

    def _use(self, token: str, changed: int) -> None:
        self._token, self._changed = token, changed
        self.api_key = f"ST${token}"
        self._basic_signer.reset_signer(self.api_key, self._key)
        self._body_signer.reset_signer(self.api_key, self._key)


def expiry(token: str) -> float:
    """When a token ends, in Unix seconds; 0 if it does not tell."""
    try:
        payload = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return 0.0


def _resource_principal() -> Credentials:
    where = "resource principal"
    try:
        signer = oci.auth.signers.get_resource_principals_signer()
    except Exception as error:  # environment, files, keys and services fail in many ways
        cure = "check the variables OCI_RESOURCE_PRINCIPAL_*, which the service sets, or choose OCI_CLI_AUTH"
        raise AuthError(where, f"it cannot be used ({_reason(error)})", cure) from error
    return _with_region(where, {}, signer, getattr(signer, "region", None))


def _instance_principal() -> Credentials:
    where = "instance principal"
    patience = _tight_retries()
    auth = os.environ.get("JOB_OCI_AUTH_ENDPOINT")
    status = metadata_status()
    if status != OK and not _is_busy(status):
        cure = "run on an OCI instance whose metadata service this container reaches, or choose OCI_CLI_AUTH=api_key"
        said = "does not answer" if status is None else f"answers {status}"
        raise AuthError(where, f"the instance metadata service {said}", cure)
    try:
        signer = oci.auth.signers.InstancePrincipalsSecurityTokenSigner(
            retry_strategy=patience,
            federation_endpoint=f"{auth}/v1/x509" if auth else None,
            federation_client_retry_strategy=patience,
            federation_client_circuit_breaker_strategy=oci.circuit_breaker.NoCircuitBreakerStrategy(),
        )
    except Exception as error:  # the metadata service, certificates and the token service fail in many ways
        cure = "check that the instance is in a dynamic group with a policy, and its route to the auth service"
        raise AuthError(where, f"no token was given ({_reason(error)})", cure, final=_final(error)) from error
    # all threads wait while a token is renewed: whoever asks for something tries again, and can say why it fails
    federation = signer.federation_client
    for part in (federation, federation.leaf_certificate_retriever, *federation.intermediate_certificate_retrievers):
        part.retry_strategy = oci.retry.NoneRetryStrategy()
    return _with_region(where, {}, signer, signer.region)


def _config_file(with_token: bool | None = None) -> Credentials:
    path = _config_path()
    profile = os.environ.get("OCI_CLI_PROFILE") or "DEFAULT"
    shown = f"profile {profile} in {_short(path)}"
    config = _read_profile(path, profile)
    region = region_override() or config.get("region")
    if region is None:
        raise AuthError(shown, "it names no region", "add region=…, or set OCI_REGION")
    config["region"] = region
    key = _key(config, shown)
    cure = f"oci session authenticate --profile-name {profile}"
    if with_token and "security_token_file" not in config:
        raise AuthError(shown, "it has no session token", f"{cure}, or set OCI_CLI_PROFILE")
    if with_token is not False and "security_token_file" in config:
        token_file = Path(config["security_token_file"]).expanduser()
        if not token_file.is_file():
            raise AuthError(shown, f"there is no {token_file}", cure)
        auth = os.environ.get("JOB_OCI_AUTH_ENDPOINT") or oci.regions.endpoint_for("auth", region)
        signer = SessionToken(token_file, key, auth, shown, cure)
        return Credentials(f"session token of {shown}", {"region": region}, signer, region)
    try:
        oci.config.validate_config(config)
    except oci.exceptions.InvalidConfig as error:
        wrong = ", ".join(f"{name} {what}" for name, what in error.errors.items())
        raise AuthError(shown, f"it is not complete: {wrong}", "write it anew: oci setup config") from error
    signer = oci.signer.Signer.from_config(config)
    return Credentials(f"API key of {shown}", config, signer, region)


def _config_path() -> Path:
    named = os.environ.get("OCI_CLI_CONFIG_FILE") or os.environ.get("OCI_CONFIG_FILE")
    return Path(named or "~/.oci/config").expanduser()


def _read_profile(path: Path, profile: str) -> dict[str, Any]:
    if not path.is_file():
        cure = "on a workstation: oci setup config; on an instance: a dynamic group with a policy"
        raise AuthError("credentials", f"none were found: no principal, and no {_short(path)}", f"{cure}; {DOCTOR}")
    try:
        config = dict(oci.config.from_file(str(path), profile))
    except oci.exceptions.ProfileNotFound:
        config = {}
    except oci.exceptions.InvalidKeyFilePath as error:
        raise AuthError(
            f"profile {profile} in {_short(path)}", "its key_file is not there", "correct key_file"
        ) from error
    except Exception as error:  # configparser's many kinds; their texts quote lines of the file, which stay here
        raise AuthError(_short(path), f"it cannot be read ({type(error).__name__})", "oci setup config") from error
    if not config.keys() & {"user", "key_file", "security_token_file"}:  # an absent DEFAULT reads as an empty one
        raise AuthError(_short(path), f"it has no profile {profile}", "set OCI_CLI_PROFILE to one it has")
    return config


def _key(config: Mapping[str, Any], shown: str) -> Any:
    file = config.get("key_file")
    if not file:
        raise AuthError(shown, "it names no key_file", "add key_file=…")
    try:
        return oci.signer.load_private_key_from_file(file, config.get("pass_phrase"))
    except OSError as error:
        raise AuthError(shown, f"the key file cannot be read ({error.strerror})", "correct key_file") from error
    except Exception as error:  # never with the error's own text: it may quote the key
        cure = "check key_file, and pass_phrase where the key has one"
        raise AuthError(shown, f"its key cannot be loaded ({type(error).__name__})", cure) from None


def _with_region(found: str, config: dict[str, Any], signer: Any, region: str | None) -> Credentials:
    region = region_override() or region
    return Credentials(found, {**config, "region": region} if region else config, signer, region)


def _tight_retries() -> Any:
    builder = oci.retry.RetryStrategyBuilder(
        max_attempts=3,
        total_elapsed_time_seconds=20,
        retry_base_sleep_time_seconds=0.2,
        retry_max_wait_between_calls_seconds=2,
        service_error_retry_config={-1: [], 429: []},
        service_error_retry_on_any_5xx=True,
    )
    return builder.get_retry_strategy()


def _reason(error: Exception) -> str:
    """Few words without what a certificate, a key or a token might have put into the text."""
    if isinstance(error, oci.exceptions.ServiceError):
        told = f"{error.status} {error.code or ''}".strip()
        return f"{told}, opc-request-id {error.request_id}" if error.request_id else told
    return type(error).__name__


def _final(error: Exception) -> bool:
    """A service that refuses would refuse again; one that does not answer may do so later."""
    return isinstance(error, oci.exceptions.ServiceError) and error.status in (400, 401, 403, 404)


def _short(path: Path) -> str:
    home = str(Path.home())
    return f"~{str(path).removeprefix(home)}" if str(path).startswith(home + "/") else str(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


KINDS: dict[str, Callable[[], Credentials]] = {
    "api_key": functools.partial(_config_file, with_token=False),
    "security_token": functools.partial(_config_file, with_token=True),
    "instance_principal": _instance_principal,
    "resource_principal": _resource_principal,
}
