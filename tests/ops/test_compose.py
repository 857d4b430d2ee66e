"The compose file: its schema, what its parts refer to, what is open to whom, and the settings that it gives the platform."

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.ops.conftest import OPS, PROJECT, read
from tradenb.core.settings import load

COMPOSE = OPS / "docker-compose.yml"
EXAMPLE = OPS / "env.example"
NO_SHELL = {"collector", "loki", "tempo"}  # images in which no check can run: Prometheus scrapes them
NO_ADDRESS = {"worker"}  # asks others, answers nobody
VARIABLE = re.compile(r"\$\{([A-Z_0-9]+)(?::([-?])([^}]*))?\}")


def stack() -> dict[str, Any]:
    return read(COMPOSE)


def services() -> dict[str, Any]:
    return stack()["services"]


def example() -> dict[str, str]:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)  # type: ignore[misc]


def filled(value: str, given: dict[str, str]) -> str:
    "A value of the compose file as compose would have it."
    return VARIABLE.sub(lambda m: given.get(m[1]) or (m[3] if m[2] == "-" else ""), value).replace("$$", "$")


def test_the_file_is_as_the_specification_has_it() -> None:
    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
    plain = {key: value for key, value in stack().items() if key != "name" and not key.startswith("x-")}
    jsonschema.validate(plain, schema, jsonschema.Draft201909Validator)
    assert stack()["name"] == "tradenb"


def test_services_depend_on_services_that_are_there_and_can_be_healthy() -> None:
    for name, service in services().items():
        wanted = service.get("depends_on", {})
        assert set(wanted) <= set(services()), name
        if isinstance(wanted, dict):
            assert all("healthcheck" in services()[other] for other in wanted), name


def test_every_service_says_whether_it_is_well() -> None:
    assert {name for name, service in services().items() if "healthcheck" not in service} == NO_SHELL | NO_ADDRESS
    targets = [t for job in read(OPS / "prometheus/prometheus.yml")["scrape_configs"] for t in job["static_configs"]]
    assert {target["labels"]["service"] for target in targets} >= NO_SHELL


def test_every_service_comes_back_and_gains_no_rights() -> None:
    for name, service in services().items():
        assert service["restart"] == "unless-stopped", name
        if name != "postgres":  # its entry point changes the owner of its volume
            assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name


def test_images_are_pinned_by_version() -> None:
    for name, service in services().items():
        tag = filled(service["image"], {}).rpartition(":")[2]
        assert tag == "local" or re.match(r"v?\d+\.\d+", tag), name
    for line in re.findall(r"^FROM (\S+)", (OPS / "Dockerfile").read_text(), re.MULTILINE):
        assert line == "base" or re.search(r":\d+\.\d+\.\d+", line)


def test_nothing_is_published_beyond_loopback_by_default() -> None:
    given = example()
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert {filled(port, given).partition(":")[0] for port in ports} == {"127.0.0.1"}
    assert {filled(port, {}).partition(":")[0] for port in ports} == {"127.0.0.1"}
    published = [filled(port, {}).split(":")[1] for port in ports]
    assert len(set(published)) == len(published)


def test_volumes_and_mounted_files_exist() -> None:
    used = set()
    for service in services().values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (OPS / source).exists(), mount
                assert mount.endswith(":ro"), mount
            else:
                used.add(source)
    assert used == set(stack()["volumes"])


def test_variables_stand_in_the_example_and_secrets_have_no_default() -> None:
    asked = {m[1]: m[2] for m in VARIABLE.finditer(COMPOSE.read_text())}
    assert set(asked) - {"TRADENB_VERSION"} == set(example())
    for name, value in example().items():
        if re.search("PASSWORD|SECRET|KEY", name):
            assert value == ""
            assert f"${{{name}:?" in COMPOSE.read_text()


def test_the_platforms_variables_are_settings_that_load() -> None:
    given = example() | {name: "s3cret" for name, value in example().items() if re.search("PASSWORD|SECRET|KEY", name)}
    environment = services()["orchestrator"]["environment"]
    settings = load(env={name: filled(value, given) for name, value in environment.items()})
    assert str(settings.root) == "/app/data"
    assert settings.services.host == "0.0.0.0"
    for name in ("exchange", "signals", "execution", "orchestrator"):
        port = getattr(settings.services, f"{name}_port")
        assert getattr(settings.services, f"{name}_url") == f"http://{name}:{port}"
        assert services()[name]["command"] == ["tradenb", "serve", name]
        assert f":{port}:{port}" in services()[name]["ports"][0]
        assert services()[name]["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/"
    assert f":{settings.reports.port}:" in services()["reports"]["ports"][0]
    assert settings.prefect.api_url == "http://prefect:4200/api"


def hosts(text: str) -> set[tuple[str, int]]:
    "Names and ports that a configuration refers to."
    named = re.findall(r"(?:https?://|@|\[|endpoint: )([a-z]+):(\d+)", text)
    return {(host, int(port)) for host, port in named}


PORTS = {  # where each answers inside the network
    "postgres": {5432},
    "exchange": {8004},
    "signals": {8001},
    "execution": {8002},
    "orchestrator": {8003},
    "reports": {8005},
    "prefect": {4200},
    "mlflow": {5050},
    "collector": {4317, 4318, 8888, 13133},
    "loki": {3100},
    "tempo": {3200, 4317},
    "prometheus": {9090},
    "alertmanager": {9093},
    "grafana": {3000},
}


@pytest.mark.parametrize(
    "file",
    [
        "docker-compose.yml",
        "prometheus/prometheus.yml",
        "alertmanager/alertmanager.yml",
        "collector/collector.yml",
        "grafana/provisioning/datasources/datasources.yml",
    ],
)
def test_configurations_refer_to_services_of_the_stack_at_their_ports(file: str) -> None:
    assert set(PORTS) == set(services()) - NO_ADDRESS
    found = {(host, port) for host, port in hosts((OPS / file).read_text()) if host != "localhost"}
    assert found
    assert [(host, port) for host, port in found if port not in PORTS.get(host, ())] == []


def test_prometheus_scrapes_every_service_of_ours() -> None:
    jobs = {job["job_name"]: job for job in read(OPS / "prometheus/prometheus.yml")["scrape_configs"]}
    targets = {t["targets"][0]: t["labels"]["service"] for t in jobs["tradenb"]["static_configs"]}
    assert targets == {f"{n}:{p}": n for n, p in (("signals", 8001), ("execution", 8002), ("orchestrator", 8003), ("exchange", 8004))}  # fmt: skip


def test_the_collectors_pipelines_are_made_of_parts_that_are_configured() -> None:
    config = read(OPS / "collector/collector.yml")
    for pipeline in config["service"]["pipelines"].values():
        for kind, parts in pipeline.items():
            assert set(parts) <= set(config[kind]), (kind, parts)
    used = {(k, p) for pipeline in config["service"]["pipelines"].values() for k, ps in pipeline.items() for p in ps}
    assert used == {(kind, part) for kind in ("receivers", "processors", "exporters") for part in config[kind]}
    assert set(config["service"]["extensions"]) == set(config["extensions"])


def test_the_collector_reads_the_keys_that_log_lines_have() -> None:
    from tradenb.core.logs import SCHEMA

    operators = read(OPS / "collector/collector.yml")["receivers"]["filelog"]["operators"]
    read_from = set(re.findall(r"attributes\.(\w+)", yaml.safe_dump(operators)))
    assert read_from <= set(SCHEMA)
    mounted = services()["collector"]["volumes"]
    assert "data:/app/data:ro" in mounted
    assert read(OPS / "collector/collector.yml")["receivers"]["filelog"]["include"] == ["/app/data/logs/*.jsonl"]


def test_loki_keeps_structured_metadata_and_forgets_after_a_while() -> None:
    config = read(OPS / "loki/loki.yml")
    schema = config["schema_config"]["configs"][-1]
    assert (schema["store"], schema["schema"]) == ("tsdb", "v13")
    assert config["limits_config"]["allow_structured_metadata"] is True
    assert config["compactor"]["retention_enabled"] is True


def test_data_sources_refer_to_each_other_by_known_names() -> None:
    sources = read(OPS / "grafana/provisioning/datasources/datasources.yml")["datasources"]
    uids = {source["uid"] for source in sources}
    assert uids == {"prometheus", "loki", "tempo", "alertmanager"}
    assert set(re.findall(r"datasourceUid'?: '?(\w+)", yaml.safe_dump(sources))) <= uids
    provider = read(OPS / "grafana/provisioning/dashboards/dashboards.yml")["providers"][0]
    mounts = {mount.split(":")[1] for mount in services()["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounts


def test_the_image_holds_what_it_runs_and_runs_as_nobody() -> None:
    lines = [line for line in (OPS / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    steps = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert steps[0] == "FROM"
    assert set(steps) <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "CMD"}
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert "--require-hashes" in "\n".join(lines)
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if "--" not in word]
    assert all((PROJECT / name).exists() for name in copied if not name.startswith("/"))
    ignored = (OPS / "Dockerfile.dockerignore").read_text().split()
    assert {"data", ".venv", "**/.env", "**/.git"} <= set(ignored)
    for command in (service["command"] for service in services().values() if "build" in service):
        assert (command if isinstance(command, str) else command[0]).split()[0] in ("tradenb", "prefect", "mlflow", "python")  # fmt: skip


def test_the_health_check_tells_well_from_ill() -> None:
    import subprocess
    import sys
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Half(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Half)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    ask = lambda url: subprocess.run([sys.executable, OPS / "alive.py", url], timeout=60).returncode
    assert [ask(f"{base}/200"), ask(f"{base}/404"), ask(f"{base}/503"), ask("http://127.0.0.1:1/")] == [0, 0, 1, 1]
    server.shutdown()
    server.server_close()
