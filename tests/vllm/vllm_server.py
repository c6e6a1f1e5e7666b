"""Real vLLM servers on the CPU, with the real NIXL connector and random weights."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = Path(os.environ.get("SPLITGYM_VLLM_PYTHON", HERE.parents[1] / ".venv-vllm" / "bin" / "python"))
MODEL = "tiny"
START_S = 300.0
CONNECTOR = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
    "UCX_TLS": "tcp,shm,self",
    "UCX_NET_DEVICES": "lo",
    "PYTHONPATH": str(HERE / "site"),
}


def make_model(folder: Path) -> Path:
    """The tiny model's files."""
    subprocess.run([PYTHON, HERE / "tiny_llama.py", folder], check=True)
    return folder


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class VllmServer:
    """One server; `log` holds what it says.

    Args:
        model: folder of the model.
        log: file to write to.
        more: options.
    """

    def __init__(self, model: Path, log: Path, *more: str):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--served-model-name", MODEL, "--load-format", "dummy", "--dtype", "float32"]
        command += ["--max-model-len", "2048", "--enforce-eager", "--distributed-executor-backend", "uni"]
        command += ["--num-gpu-blocks-override", "256", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--kv-transfer-config", json.dumps(CONNECTOR), *more]
        settings = {**SETTINGS, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings},
                start_new_session=True,  # the engine's process ends with it
            )

    @property
    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> None:
        """Until it serves.

        Raises:
            RuntimeError: it ended, or takes too long; tells the end of its log.
        """
        until = time.monotonic() + START_S
        while not self.healthy:
            if self.process.poll() is not None or time.monotonic() > until:
                tail = "\n".join(self.log.read_text().splitlines()[-30:])
                raise RuntimeError(f"vLLM did not start ({self.log}):\n{tail}")
            time.sleep(0.5)

    def kill(self) -> None:
        """End it at once, with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what is left of its session
        self.process.wait()
