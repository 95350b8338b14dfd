"""Images, manifests and scripts fit the tools that read them and the command line; so do the pages about them."""

import copy
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from jeffnet.cli.main import _parse
from jeffnet.cli.train import _pairs
from jeffnet.train.recipe import load_recipe, override

pytestmark = pytest.mark.runs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("gpu", "tpu", "slurm", "kubernetes")] + [
    ROOT / "docker" / "README.md"
]
SCRIPTS = sorted([*ROOT.glob("deploy/*/*.sh"), *ROOT.glob("deploy/*/*.sbatch")])
DOCKERFILES = sorted(ROOT.glob("docker/Dockerfile.*"))
MANIFESTS = sorted(ROOT.glob("deploy/kubernetes/*.yaml"))
JOBSETS = [path for path in MANIFESTS if path.name.startswith("jobset")]
KUBERNETES = "1.33"

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def tool(name):
    """A linter of the development extra: beside this Python, or on the PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def lint(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def check_command(words):
    """Let the command line parse what stands after `jeffnet`, and a recipe take the entries that it is given."""
    options = _parse(words)
    assert callable(options.run)
    if getattr(options, "config", None):
        assert override(load_recipe(options.config), _pairs(options.overrides))
    return options


# Pages


def commands(text):
    """The words of every command in the shell blocks of a page, with settings of variables left out."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"(\w+=|export$)", words[0]):
                words.pop(0)
            if words:
                yield words


def jeffnet_arguments(words):
    """What a command lets jeffnet do: directly, in a container, or through one of our scripts; None if nothing."""
    for place, word in enumerate(words):
        if word.endswith(("deploy/slurm/train.sbatch", "deploy/gpu/train_on_hosts.sh")):
            config, output, *rest = words[place + 1 :]
            return ["train", "--config", config, "--output", output, "--continue", *rest]
        if word == "jeffnet" or re.fullmatch(r"jeffnet:\w+", word) or word.endswith("deploy/tpu/run.sh"):
            return words[place + 1 :] or None
    return None


def page_commands():
    for page in PAGES:
        for words in commands(page.read_text()):
            # What builds an image names it too, and so does what runs something else in it.
            others = words[:2] == ["docker", "build"] or "--entrypoint" in words
            if not others and jeffnet_arguments(words):
                yield pytest.param(jeffnet_arguments(words), id=f"{page.name}: {shlex.join(words)}")


@pytest.mark.parametrize("words", list(page_commands()))
def test_the_commands_of_the_pages_parse(words):
    check_command(words)


def test_every_way_to_start_jeffnet_is_understood():
    assert jeffnet_arguments(shlex.split("srun --label jeffnet info --env")) == ["info", "--env"]
    assert jeffnet_arguments(shlex.split("docker run --rm --gpus all jeffnet:gpu info --env")) == ["info", "--env"]
    assert jeffnet_arguments(shlex.split("sbatch --nodes 4 deploy/slurm/train.sbatch c r --epochs 1")) == [
        *("train", "--config", "c", "--output", "r", "--continue", "--epochs", "1")
    ]
    assert list(commands("```sh\nA=1 jeffnet x \\\n  y  # z\n```\n```text\njeffnet z\n```\n")) == [
        ["jeffnet", "x", "y"]
    ]
    assert len(list(page_commands())) >= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_pages_name_exist(page):
    text = page.read_text()
    links = [page.parent / name for name in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)]
    named = [ROOT / name for name in re.findall(r"\b(?:deploy|docker)/[\w./-]*\w", text)]
    assert [str(path) for path in [*links, *named] if not path.exists()] == []


# Images


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    assert lint(tool("hadolint"), path) == (0, "")


def test_hadolint_finds_an_image_without_a_version(tmp_path):
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILES[0].read_text().replace("${PYTHON_IMAGE} AS", "python AS"))
    assert lint(tool("hadolint"), wrong)[0] == 1


def instructions(path):
    """`(name, rest)` of each instruction, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def argument(path, name):
    [value] = [
        rest.split("=", 1)[1] for kind, rest in instructions(path) if kind == "ARG" and rest.startswith(f"{name}=")
    ]
    return value.strip('"')


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_checked_and_not_root(path):
    rows = instructions(path)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", argument(path, "PYTHON_IMAGE"))
    assert [rest for name, rest in rows if name == "FROM"] == ["${PYTHON_IMAGE} AS builder", "${PYTHON_IMAGE}"]
    assert [rest for name, rest in rows if name == "USER"] == ["1000:1000"]
    assert [rest for name, rest in rows if name == "ENTRYPOINT"] == ['["jeffnet"]']
    [health] = [rest for name, rest in rows if name == "HEALTHCHECK"]
    options = check_command(json.loads(health.partition("CMD ")[2])[1:])
    assert options.env and options.device == ("cuda" if path.suffix == ".gpu" else None)
    last_stage = rows[[name for name, _ in rows].index("FROM", 2) :]
    # The user that it runs as comes after all that needs root.
    assert [name for name, _ in last_stage].index("USER") > max(
        place for place, (name, _) in enumerate(last_stage) if name in ("RUN", "COPY")
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_pins_are_what_the_package_asks_for(path):
    """Every package that ours names, for itself and for the image's extras, in a version that its bounds allow."""
    requirements = pytest.importorskip("packaging.requirements")
    pins = dict(pin.split("==") for pin in argument(path, "PINS").split())
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in argument(path, "EXTRAS").split(","):
        wanted += project["optional-dependencies"][extra]
    for text in wanted:
        requirement = requirements.Requirement(text)
        if requirement.marker and not requirement.marker.evaluate(
            {"python_version": "3.11", "platform_system": "Linux", "extra": ""}
        ):
            continue
        name = requirement.name.lower().replace("_", "-")
        assert name in pins and requirement.specifier.contains(pins[name]), text
    assert set(argument(path, "JAX_EXTRAS").split(",")) <= set(
        importlib.metadata.metadata("jax").get_all("Provides-Extra")
    )


def test_both_images_have_the_same_versions():
    cpu, gpu = DOCKERFILES
    for name in ("PINS", "EXTRAS", "PYTHON_IMAGE"):
        assert argument(cpu, name) == argument(gpu, name)


def test_what_an_image_copies_is_sent_to_its_builder():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {*built["project"]["license-files"], built["project"]["readme"], "pyproject.toml"} <= sent
    assert set(built["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= sent
    assert all((ROOT / name).exists() for name in sent)


@needs_bash
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("machine", "extras", "index", "passes"),
    [
        ("x86_64", "tf,tfds,torch", "", False),
        ("x86_64", "tf,tfds,torch", "https://example.com/cpu", True),
        ("x86_64", "tf,tfds", "", True),
        ("aarch64", "tf,tfds,torch", "", True),
    ],
)
def test_torch_with_cuda_is_refused_before_it_is_loaded(path, machine, extras, index, passes):
    [guard] = [rest for name, rest in instructions(path) if name == "RUN" and rest.startswith("case")]
    script = f"uname() {{ echo {machine}; }}; {guard}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "EXTRAS": extras, "TORCH_INDEX": index},
        capture_output=True,
        check=False,
    )
    assert (done.returncode == 0) is passes
    assert (b"TORCH_INDEX=URL" in done.stderr) is not passes


# Manifests


def load(path):
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(path.read_text()))


def check_manifest(manifest):
    """Raise a `ValidationError` of jsonschema's where it has unknown fields or wrong values."""
    validate = pytest.importorskip("kubernetes_validate").validate
    jsonschema = pytest.importorskip("jsonschema")
    if manifest["kind"] != "JobSet":
        validate(manifest, KUBERNETES, strict=True)
        return
    jsonschema.validate(manifest, json.loads((ROOT / "tests" / "deploy" / "jobset-v1alpha2.schema.json").read_text()))
    for job in manifest["spec"]["replicatedJobs"]:
        name = f"{manifest['metadata']['name']}-{job['name']}"
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": job["template"]["spec"]}
        validate(whole, KUBERNETES, strict=True)


def job_of(manifest):
    [job] = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_fit_their_schemas(path):
    for manifest in load(path):
        check_manifest(manifest)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["spec"].update(failurePolicies={}),
        lambda manifest: manifest["spec"]["failurePolicy"].update(maxRestart=1),
        lambda manifest: manifest["spec"]["failurePolicy"]["rules"][0].update(action="FailJob"),
        lambda manifest: manifest["spec"]["failurePolicy"]["rules"][0].update(name="not-with-dashes"),
        lambda manifest: manifest["spec"]["replicatedJobs"][0].pop("name"),
        lambda manifest: manifest.update(apiVersion="jobset.x-k8s.io/v1alpha1"),
        lambda manifest: job_of(manifest).update(backoffLimits=0),
        lambda manifest: job_of(manifest)["podFailurePolicy"]["rules"][0].pop("action"),
        lambda manifest: pod_of(manifest).update(serviceAccountname="jeffnet"),
        lambda manifest: pod_of(manifest)["containers"][0]["args"].append(10),
        lambda manifest: pod_of(manifest)["volumes"][0].update(persistentVolumeClaims={}),
    ],
)
def test_a_wrong_field_is_refused(change):
    jsonschema = pytest.importorskip("jsonschema")
    manifest = load(JOBSETS[0])[0]
    wrong = copy.deepcopy(manifest)
    change(wrong)
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(wrong)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_containers_run_commands_that_parse(path):
    pod = pod_of(load(path)[0])
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        options = check_command(container["args"])
        # All of the devices that the container is given, or none.
        [(resource, count)] = [
            (name.partition("/")[0], count)
            for name, count in container["resources"]["limits"].items()
            if name in ("nvidia.com/gpu", "google.com/tpu")
        ]
        assert options.device == {"nvidia.com": "cuda", "google.com": "tpu"}[resource]
        assert options.num_devices == count
    [trainer] = pod["containers"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in trainer["volumeMounts"]} == volumes
    options = _parse(trainer["args"])
    paths = [options.output, dict(_pairs(options.overrides))["data.path"]]
    mounts = [mount["mountPath"] for mount in trainer["volumeMounts"]]
    assert all(any(path.startswith(f"{mount}/") for mount in mounts) for path in paths)


def outcome(manifest, code=None, disrupted=False):
    """What becomes of the set when a pod fails, as Kubernetes and JobSet decide it."""
    job = job_of(manifest)
    assert job["backoffLimit"] == 0
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        exits, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        if exits and exits["containerName"] == "trainer" and exits["operator"] == "In" and code in exits["values"]:
            reason = "PodFailurePolicy"
            message = (
                f"Container trainer for pod a/b failed with exit code {code} matching FailJob rule at index {index}"
            )
            break
        if disrupted and {"type": "DisruptionTarget", "status": "True"} in conditions:
            reason = "PodFailurePolicy"
            message = f"Pod a/b has condition DisruptionTarget matching FailJob rule at index {index}"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule.get("onJobFailureReasons", [reason]) and any(re.search(each, message) for each in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_what_starts_again_and_what_does_not(path):
    manifest = load(path)[0]
    assert [outcome(manifest, code) for code in (1, 2)] == ["FailJobSet"] * 2
    assert outcome(manifest, 75) == outcome(manifest, 137, True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert [outcome(manifest, code) for code in (70, 76, 134, 137, 139)] == ["RestartJobSet"] * 5
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert "--continue" in pod_of(manifest)["containers"][0]["args"]
    assert pod_of(manifest)["restartPolicy"] == "Never"


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jax_finds_the_processes_of_the_job(path, monkeypatch):
    """As JAX reads them off the job and the pod, which it gets from Kubernetes."""
    clusters = pytest.importorskip("jax._src.clusters")
    cluster = clusters.K8sCluster
    manifest = load(path)[0]
    name, job, pod = manifest["metadata"]["name"], job_of(manifest), pod_of(manifest)
    # One job, whose pods are numbered, on the pod network, where the address is the pod's own.
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 1 and job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] and not pod.get("hostNetwork")
    assert "network" not in manifest["spec"]  # JAX takes the set's name for the subdomain
    labels = {"jobset.sigs.k8s.io/jobset-name": name}
    found = SimpleNamespace(
        metadata=SimpleNamespace(name=f"{name}-trainer-0", labels=labels),
        spec=SimpleNamespace(parallelism=job["parallelism"]),
    )
    monkeypatch.setattr(cluster, "_job", lambda: found)
    monkeypatch.setattr(cluster, "_pod", lambda: SimpleNamespace(spec=SimpleNamespace(subdomain=name)))
    monkeypatch.setattr(cluster, "_controller", lambda: SimpleNamespace(kind="Job"))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert (cluster.get_process_count(), cluster.get_process_id()) == (job["parallelism"], 1)
    host, _, port = cluster.get_coordinator_address(None, None).partition(":")
    assert host == f"{name}-trainer-0-0.{name}"
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    on_tpu = "google.com/tpu" in pod["containers"][0]["resources"]["limits"]
    assert ports["coordinator"] == int(clusters.cloud_tpu_cluster.coordinator_port if on_tpu else port)


def test_jax_may_read_what_it_needs():
    """Pods by their address, and the job; the pods run as whom the role is bound to."""
    account, role, binding = load(ROOT / "deploy" / "kubernetes" / "access.yaml")
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {("", "pods", "list"), ("batch", "jobs", "get")}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    [gpus] = [load(path)[0] for path in JOBSETS if path.name == "jobset.yaml"]
    assert pod_of(gpus)["serviceAccountName"] == account["metadata"]["name"]


def test_the_tpu_job_has_a_pod_for_each_host_of_the_slice():
    [manifest] = load(ROOT / "deploy" / "kubernetes" / "jobset-tpu.yaml")
    pod = pod_of(manifest)
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job_of(manifest)["parallelism"] * chips == rows * columns == 256


# Scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    assert lint(tool("shellcheck"), path) == (0, "")
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"


@needs_bash
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_parses_the_scripts(path):
    assert lint("bash", "-n", path) == (0, "")


def test_shellcheck_finds_a_word_that_splits(tmp_path):
    wrong = tmp_path / "wrong.sh"
    wrong.write_text(SCRIPTS[0].read_text() + "\nrm $1\n")
    assert lint(tool("shellcheck"), wrong)[0] == 1


@pytest.fixture
def run(tmp_path):
    """Runs a script with stand-ins for programs: each notes its words, a line each call, and does what it is told."""
    calls = tmp_path / "calls"

    def run(script, *arguments, settings=None, timeout=60, **programs):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, body in programs.items():
            # In one piece: several may run at once.
            note = f'words=$(printf "%s\\t" {name} "$@"); printf "%s\\n" "$words" >>{calls}'
            (folder / name).write_text(f"#!/bin/bash\n{note}\n{body}\n")
            (folder / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **(settings or {})}
        command = ["bash", str(ROOT / "deploy" / script), *arguments]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [line.rstrip("\t").split("\t") for line in lines]

    return run


SLURM = {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "42"}
TRAINING = ("efficientnet_b0_paper", "runs/b0", "--data.path", "/data/image net")


@needs_bash
@pytest.mark.parametrize(
    ("code", "restarts", "status", "requeued"),
    [
        (0, 0, 0, False),
        (1, 0, 1, False),
        (2, 0, 2, False),
        (75, 99, 0, True),
        (76, 9, 0, True),
        (76, 10, 76, False),
        (70, 0, 0, True),
        (139, 9, 0, True),
        (139, 10, 139, False),
    ],
)
def test_slurm_gets_back_what_can_go_on(run, code, restarts, status, requeued):
    # The health comes first, and passes.
    srun = f'[[ "$*" == *" info "* ]] && exit 0; echo "devices $JAX_LOCAL_DEVICE_IDS"; exit {code}'
    settings = SLURM | {"SLURM_RESTART_COUNT": str(restarts)}
    done, calls = run("slurm/train.sbatch", *TRAINING, settings=settings, srun=srun, scontrol="")
    assert done.returncode == status, done.stderr
    assert (["scontrol", "requeue", "42"] in calls) is requeued
    assert "devices 0,1,2,3,4,5,6,7\n" in done.stdout
    health, training = [check_command(call[call.index("jeffnet") + 1 :]) for call in calls if call[0] == "srun"]
    for options in (health, training):  # all GPUs of the node, or none
        assert (options.device, options.num_devices) == ("cuda", 8)
    assert health.env and training.output == "runs/b0" and training.overrides[-1] == "/data/image net"


@needs_bash
def test_slurm_does_not_train_on_a_node_that_fails_its_test(run):
    done, calls = run("slurm/train.sbatch", *TRAINING, settings=SLURM, srun="exit 1", scontrol="")
    assert done.returncode == 1 and len(calls) == 1


def test_slurm_sends_the_signal_that_saves():
    lines = (ROOT / "deploy" / "slurm" / "train.sbatch").read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    # To the processes: `B:` would send it to the script alone.
    assert "--signal=TERM@120" in options and "--requeue" in options and "--ntasks-per-node=1" in options


@needs_bash
@pytest.mark.parametrize("status", [0, 76])
def test_hosts_get_the_same_command_and_their_numbers(run, tmp_path, status):
    # What ssh would run on the other host is run here, with a program of our own that notes its words.
    settings = {
        "HOSTS": "one two",
        "PORT": "1234",
        "JEFFNET": str(tmp_path / "bin" / "program"),
        "FOLDER": str(tmp_path),
    }
    program = f'[[ "${{!#}}" == 1 ]] && exit {status}; exit 0'
    done, calls = run("gpu/train_on_hosts.sh", *TRAINING, settings=settings, ssh='bash -c "$2"', program=program)
    assert done.returncode == status, done.stderr
    assert {call[1] for call in calls if call[0] == "ssh"} == {"one", "two"}
    started = sorted((call[1:] for call in calls if call[0] == "program"), key=lambda words: words[-1])
    for number, words in enumerate(started):
        options = check_command(words)
        assert (options.coordinator, options.num_processes, options.process_id) == ("one:1234", 2, number)
        assert options.overrides[-1] == "/data/image net"
    assert len(started) == 2


@needs_bash
def test_a_stop_saves_on_all_hosts(tmp_path):
    """SIGTERM to the script goes to the first host's process; the script waits for all, and has their status."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text('#!/bin/bash\nexec bash -c "$2"\n')
    # The second process stops once the first was told to, as processes of one run do.
    (folder / "program").write_text(
        "#!/bin/bash\n"
        f"trap 'touch {tmp_path}/told; exit 75' TERM\n"
        f"touch {tmp_path}/started-${{!#}}\n"
        f"for _ in {{1..300}}; do sleep 0.1; [[ -e {tmp_path}/told ]] && exit 75; done\n"
    )
    for path in folder.iterdir():
        path.chmod(0o755)
    port = str(40000 + os.getpid() % 20000)
    env = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        **{"HOSTS": "one two", "PORT": port, "JEFFNET": str(folder / "program"), "FOLDER": str(tmp_path)},
    }
    command = ["bash", str(ROOT / "deploy" / "gpu" / "train_on_hosts.sh"), "config", "run"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not all((tmp_path / f"started-{number}").exists() for number in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=40) == 75
    Path(f"/tmp/jeffnet-{port}.pid").unlink(missing_ok=True)


TPU = {"TPU_NAME": "name", "ZONE": "zone"}


@needs_bash
@pytest.mark.parametrize(
    ("kind", "runtime"), [("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v3-8", "tpu-ubuntu2204-base")]
)
def test_a_tpu_is_asked_for_and_waited_for(run, kind, runtime):
    gcloud = '[[ "$*" == *describe* ]] && echo ACTIVE; exit 0'
    done, calls = run("tpu/create.sh", "--spot", settings=TPU | {"ACCELERATOR_TYPE": kind}, gcloud=gcloud)
    assert done.returncode == 0 and done.stdout.endswith("ACTIVE\n")
    assert {f"--accelerator-type={kind}", f"--runtime-version={runtime}", "--spot", "--zone=zone"} <= set(calls[0])
    done, _ = run("tpu/create.sh", settings=TPU | {"ACCELERATOR_TYPE": kind}, gcloud=gcloud.replace("ACTIVE", "FAILED"))
    assert done.returncode == 1


@needs_bash
def test_a_tpu_command_arrives_as_it_was_given(run, tmp_path):
    done, calls = run("tpu/run.sh", "train", "--data.path", "image net", settings=TPU, gcloud="exit 3")
    assert done.returncode == 3
    [command] = [word.removeprefix("--command=") for word in calls[0] if word.startswith("--command=")]
    assert shlex.split(command) == ["cd", "jeffnet", "&&", "venv/bin/jeffnet", "train", "--data.path", "image net"]
    assert "--worker=all" in calls[0]


@needs_bash
def test_a_tpu_stop_finds_the_training_and_nothing_else(run):
    _, calls = run("tpu/stop.sh", settings=TPU, gcloud="")
    [command] = [word.removeprefix("--command=") for word in calls[0] if word.startswith("--command=")]
    pattern = shlex.split(command)[-1]
    assert "--oldest" in command  # one SIGTERM to each run: the second would not let it save
    assert re.search(pattern, "/home/me/jeffnet/venv/bin/python venv/bin/jeffnet train --config c")
    assert not re.search(pattern, "/home/me/jeffnet/venv/bin/python venv/bin/jeffnet info --env")
    assert not re.search(pattern, f"bash -c {command}")


@needs_bash
@pytest.mark.parametrize("script", ["create.sh", "install.sh", "run.sh", "stop.sh", "delete.sh"])
def test_a_tpu_script_without_a_name_does_nothing(run, script):
    done, calls = run(f"tpu/{script}", "x", settings=dict.fromkeys(("TPU_NAME", "ZONE"), ""), gcloud="")
    assert done.returncode != 0 and "TPU_NAME" in done.stderr and not calls
