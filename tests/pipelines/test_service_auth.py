"""Who is let in: tokens and roles, sessions of browsers, other sites' pages, and what is kept of a token."""

import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from curation.input_policy import InputPolicy
from pipelines.cli import main
from pipelines.service.app import create_app
from pipelines.service.jobs import Jobs
from pipelines.service.tokens import TokenStore
from tests.pipelines.fake_ray import FakeRay

HERE = "https://clips.example"


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "config" / "tokens.json")


@pytest.fixture
def http(tmp_path: Path, store: TokenStore) -> TestClient:
    (tmp_path / "films").mkdir()
    jobs = Jobs(str(tmp_path / "data"), FakeRay(), InputPolicy.of([str(tmp_path / "films")]))
    app = create_app(jobs, store, dashboard=False, https=True)

    @app.websocket("/socket")
    async def socket(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(ws.scope["principal"].name)
        await ws.close()

    return TestClient(app, base_url=HERE, follow_redirects=False)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def spec(tmp_path: Path, output: str) -> dict[str, object]:
    return {"input": {"uris": [str(tmp_path / "films")]}, "output": output, "scores": {"text": "off"}}


def test_nothing_but_health_and_login_is_open(http: TestClient, store: TokenStore) -> None:
    assert http.get("/api/health").status_code == 200
    assert http.get("/login").status_code == 200
    for method, path in [("GET", "/api/jobs"), ("GET", "/api/openapi.json"), ("GET", "/jobs"), ("POST", "/api/jobs"),
                         ("GET", "/d/x"), ("GET", "/service.js"), ("GET", "/nothing")]:  # fmt: skip
        answer = http.request(method, path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    page = http.get("/d/films", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/d/films")


def test_each_role_may_do_its_part(http: TestClient, store: TokenStore, tmp_path: Path) -> None:
    tokens = {name: store.make(name, role) for name, role in
              [("rita", "read"), ("ann", "submit"), ("bob", "submit"), ("root", "admin")]}  # type: ignore[arg-type]  # fmt: skip

    def ask(who: str, method: str, path: str, **body: object) -> int:
        return http.request(method, path, headers=bearer(tokens[who]), **body).status_code  # type: ignore[arg-type]

    assert ask("rita", "POST", "/api/jobs", json=spec(tmp_path, "x")) == 403
    assert ask("ann", "POST", "/api/jobs", json=spec(tmp_path, "films")) == 201
    assert ask("rita", "GET", "/api/jobs/films") == 200
    assert ask("rita", "POST", "/api/jobs/films/cancel") == 403
    answer = http.post("/api/jobs/films/cancel", headers=bearer(tokens["bob"]))
    assert (answer.status_code, answer.json()["detail"]) == (403, "films is ann's; only they or an admin may do that")
    assert ask("ann", "POST", "/api/jobs/films/cancel") == 200
    assert ask("bob", "DELETE", "/api/jobs/films") == 403
    assert ask("root", "DELETE", "/api/jobs/films") == 204


def test_a_wrong_revoked_or_expired_token_is_refused(http: TestClient, store: TokenStore) -> None:
    token = store.make("ann", "submit")
    assert http.get("/api/jobs", headers=bearer(token)).status_code == 200
    store.revoke("ann")
    for each in (token, "cm_wrong", "", "é"):
        answer = http.get("/api/jobs", headers={"Authorization": f"Bearer {each}".encode()})
        assert (answer.status_code, answer.json()["detail"]) == (401, "the token is wrong, has expired or was revoked")
    assert http.get("/api/jobs", headers={"Authorization": f"Basic {token}"}).status_code == 401
    brief = store.make("brief", "read", days=1e-9)
    assert http.get("/api/jobs", headers=bearer(brief)).status_code == 401
    assert [each.expired for each in store.tokens()] == [True]


def test_many_failures_are_slowed_down_and_lock_nobody_out(http: TestClient, store: TokenStore) -> None:
    token = store.make("ann", "read")
    codes = [http.get("/api/jobs", headers=bearer(f"guess{k}")).status_code for k in range(12)]
    assert codes == [401] * 10 + [429] * 2
    answer = http.get("/api/jobs", headers=bearer("guess"))
    assert 1 <= int(answer.headers["retry-after"]) <= 61
    assert http.post("/login", content="token=guess").status_code == 429
    assert http.get("/api/jobs", headers=bearer(token)).status_code == 200


def test_a_browser_logs_in_and_out(http: TestClient, store: TokenStore, tmp_path: Path) -> None:
    token = store.make("ann", "submit")
    wrong = http.post("/login", data={"token": "cm_wrong"}, headers={"Origin": HERE})
    assert wrong.status_code == 401
    assert "This token is wrong" in wrong.text
    answer = http.post("/login", data={"token": token, "next": "/d/films"}, headers={"Origin": HERE})
    assert (answer.status_code, answer.headers["location"]) == (303, "/d/films")
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "secure", "samesite=strict"))
    assert token not in str(answer.headers)
    assert "ann (submit)" in http.get("/jobs").text
    assert http.post("/api/jobs", json=spec(tmp_path, "x"), headers={"Origin": HERE}).status_code == 201
    old = dict(http.cookies)
    assert http.post("/logout", headers={"Origin": HERE}).status_code == 303
    assert http.get("/jobs").status_code == 401
    http.cookies.update(old)
    assert http.get("/jobs").status_code == 200
    store.revoke("ann")
    assert http.get("/jobs").status_code == 401, "a session ends with its token"


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/a\nb"]
)
def test_a_login_leads_to_this_service_only(http: TestClient, store: TokenStore, where: str) -> None:
    answer = http.post("/login", data={"token": store.make("ann", "read"), "next": where}, headers={"Origin": HERE})
    assert answer.headers["location"] == "/jobs"


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {}]
)
def test_another_sites_page_cannot_use_the_session(
    http: TestClient, store: TokenStore, headers: dict[str, str]
) -> None:
    http.post("/login", data={"token": store.make("ann", "admin")}, headers={"Origin": HERE})
    answer = http.post("/api/jobs/x/cancel", headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (403, "the request comes from another site's page")
    if headers:
        with pytest.raises(WebSocketDisconnect), http.websocket_connect("/socket", headers=headers):
            pass


def test_a_socket_needs_a_session_too(http: TestClient, store: TokenStore) -> None:
    with pytest.raises(WebSocketDisconnect), http.websocket_connect("/socket"):
        pass
    http.post("/login", data={"token": store.make("ann", "read")}, headers={"Origin": HERE})
    cookies = "; ".join(f"{name}={value}" for name, value in http.cookies.items())  # of https: wss sends it, ws not
    here = {"Origin": "https://testserver", "Host": "testserver"}  # where starlette's client says it connects to
    with http.websocket_connect("/socket", headers={**here, "Cookie": cookies}) as socket:
        assert socket.receive_text() == "ann"


def test_on_this_machine_no_token_is_needed_but_other_sites_stay_out(tmp_path: Path) -> None:
    jobs = Jobs(str(tmp_path / "data"), FakeRay(), InputPolicy())
    http = TestClient(create_app(jobs, None, dashboard=False), base_url="http://localhost:8080")
    assert http.get("/api/jobs").status_code == 200
    assert http.post("/api/jobs/x/cancel").status_code == 404
    for origin in ("https://evil.example", "http://localhost:9999", "null"):
        assert http.post("/api/jobs/x/cancel", headers={"Origin": origin}).status_code == 403
    assert http.get("/api/jobs", headers={"Host": "evil.example"}).status_code == 400


def test_the_command_makes_lists_and_revokes_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_TOKENS", str(tmp_path / "t" / "tokens.json"))

    def run(*arguments: str) -> str:
        return CliRunner().invoke(main, ["token", *arguments]).output

    token = run("make", "ann", "--role", "admin", "--days", "90").strip()
    assert re.fullmatch(r"cm_[\w-]{43}", token)
    kept = (tmp_path / "t" / "tokens.json").read_text()
    assert token not in kept
    assert token[3:] not in kept
    assert stat.S_IMODE((tmp_path / "t" / "tokens.json").stat().st_mode) == 0o600
    until = datetime.fromisoformat(run("list").split()[-1])
    assert timedelta(days=89) < until - datetime.now(UTC) < timedelta(days=91)
    assert run("make", "ann") == (
        "clipmill: there is a token called ann already; revoke it first, or choose another name\n"
    )
    assert run("revoke", "ann") == "revoked ann\n"
    assert run("revoke", "ann") == "clipmill: no token is called ann\n"
    assert "is not a name" in run("make", "../x")


def test_an_open_address_without_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_TOKENS", str(tmp_path / "tokens.json"))
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        result = CliRunner().invoke(main, ["serve", str(tmp_path / "data"), "--host", host])
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        assert "a token is needed: clipmill token make" in result.output
    TokenStore(tmp_path / "tokens.json").make("old", "admin", days=1e-9)
    assert CliRunner().invoke(main, ["serve", str(tmp_path / "data"), "--host", "0.0.0.0"]).exit_code == 2
    (tmp_path / "tokens.json").write_text("[]")
    assert "not a file of tokens" in CliRunner().invoke(main, ["token", "list"]).output


def test_the_token_of_a_ray_of_ours_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cluster import make_token

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))
    path = make_token()
    text = path.read_text()
    assert len(text) == 64
    path.chmod(0o644)  # as Ray itself leaves it
    assert make_token().read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
