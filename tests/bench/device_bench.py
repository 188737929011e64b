#!/usr/bin/python3
"""Measures /dev/nbdX behind Berth, qemu-nbd and nbd-server in one boot of one kernel, and prints ratios.

Run it inside the VM (docs/performance.md has the command), as root, with nbd loaded:

    device_bench.py BERTHD BERTHCTL [--rounds=N] [--seconds=S]

Each round visits every server and workload in random order. IOPS come from fio; CPU is that of the whole machine, as work done
by the kernel's client and by the server are both part of the price.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time

IMAGE_BYTES = 96 << 20
PATIENCE_SECONDS = 60

WORKLOADS = {
    "4k read QD1": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "4k read QD32": ["--rw=randread", "--bs=4k", "--iodepth=32"],
    "4k read 4 jobs QD32": ["--rw=randread", "--bs=4k", "--iodepth=32", "--numjobs=4"],
    "4k write QD32": ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
    "128k read QD8": ["--rw=read", "--bs=128k", "--iodepth=8"],
    "128k write QD8": ["--rw=write", "--bs=128k", "--iodepth=8"],
}


def run(*arguments):
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS).stdout


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS} s for {what}")
        time.sleep(0.01)


def device_size(device):
    with open(f"/sys/block/{os.path.basename(device)}/size", encoding="ascii") as file:
        return int(file.read()) * 512


def make_image(directory, name):
    path = os.path.join(directory, name + ".img")
    with open(path, "wb") as file:
        for _ in range(IMAGE_BYTES >> 20):
            file.write(b"i" * (1 << 20))
    return path


@contextlib.contextmanager
def process(*arguments):
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()


@contextlib.contextmanager
def berth(directory, berthd, berthctl, connections):
    image = make_image(directory, "berth")
    socket = os.path.join(directory, "berthd.sock")
    endpoint = f"--endpoint=unix:{socket}"
    with process(berthd, f"--listen=unix:{socket}", f"--state-dir={directory}/state", f"--image-root={directory}"):
        wait_for(lambda: os.path.exists(socket), "berthd")
        run(berthctl, endpoint, "export", "create", "bench", image)
        start = time.monotonic()
        device = run(berthctl, endpoint, "attach", "bench", f"--connections={connections}").strip()
        attach = time.monotonic() - start
        try:
            yield device, attach
        finally:
            run(berthctl, endpoint, "detach", "bench")
            run(berthctl, endpoint, "export", "delete", "bench")


@contextlib.contextmanager
def qemu_nbd(directory, device):
    image = make_image(directory, "qemu")
    start = time.monotonic()
    run("qemu-nbd", "-f", "raw", "--discard=unmap", "-c", device, image)
    wait_for(lambda: device_size(device) == IMAGE_BYTES, "qemu-nbd")
    attach = time.monotonic() - start
    try:
        yield device, attach
    finally:
        run("qemu-nbd", "-d", device)
        wait_for(lambda: device_size(device) == 0, "qemu-nbd -d")


@contextlib.contextmanager
def nbd_server(directory, device, connections):
    image = make_image(directory, "nbd-server")
    socket = os.path.join(directory, "nbd-server.sock")
    config = os.path.join(directory, "nbd-server.conf")
    pid_file = os.path.join(directory, "nbd-server.pid")
    with open(config, "w", encoding="ascii") as file:
        file.write(f"[generic]\nlistenaddr = 127.0.0.1\nport = 10999\nunixsock = {socket}\n"
                   f"[bench]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n")
    run("nbd-server", "-C", config, "-p", pid_file)
    wait_for(lambda: os.path.exists(socket), "nbd-server")
    start = time.monotonic()
    run("nbd-client", "-unix", socket, device, "-N", "bench", "-C", str(connections))
    wait_for(lambda: device_size(device) == IMAGE_BYTES, "nbd-client")
    attach = time.monotonic() - start
    try:
        yield device, attach
    finally:
        run("nbd-client", "-d", device)
        wait_for(lambda: device_size(device) == 0, "nbd-client -d")
        with open(pid_file, encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGTERM)


def busy_seconds():
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def measure(device, arguments, seconds):
    before = busy_seconds()
    report = json.loads(run(
        "fio", "--name=bench", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--group_reporting",
        "--time_based", f"--runtime={seconds}", "--norandommap", "--output-format=json", *arguments))
    busy = busy_seconds() - before
    job = report["jobs"][0]
    total = job["read"]["total_ios"] + job["write"]["total_ios"]
    return {"iops": job["read"]["iops"] + job["write"]["iops"], "cpu_microseconds": busy * 1e6 / max(1, total)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("berthd")
    parser.add_argument("berthctl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))

        def place(name):
            path = os.path.join(directory, name)
            os.mkdir(path)
            return path

        # Fixed devices for those who cannot choose; Berth takes whatever the kernel gives it.
        servers = {
            "qemu-nbd": stack.enter_context(qemu_nbd(place("q"), "/dev/nbd14")),
            "nbd-server": stack.enter_context(nbd_server(place("n"), "/dev/nbd15", 1)),
            "berth": stack.enter_context(berth(place("b1"), options.berthd, options.berthctl, 1)),
            "berth, 4 connections": stack.enter_context(berth(place("b4"), options.berthd, options.berthctl, 4)),
        }
        results = {(server, workload): [] for server in servers for workload in WORKLOADS}
        for number in range(options.rounds):
            visits = list(results)
            random.shuffle(visits)
            for server, workload in visits:
                device = servers[server][0]
                results[server, workload].append(measure(device, WORKLOADS[workload], options.seconds))
            print(f"round {number + 1} of {options.rounds} done", flush=True)

        print(f"\nIOPS, in brackets CPU microseconds of the whole machine a request; medians of {options.rounds} rounds.\n")
        print("| workload | " + " | ".join(servers) + " | berth / best peer, IOPS |")
        print("|---" * (len(servers) + 2) + "|")
        for workload in WORKLOADS:
            medians = {server: {key: statistics.median(r[key] for r in results[server, workload])
                                for key in ("iops", "cpu_microseconds")} for server in servers}
            cells = [f"{m['iops']:.0f} ({m['cpu_microseconds']:.0f})" for m in medians.values()]
            best_peer = max(medians["qemu-nbd"]["iops"], medians["nbd-server"]["iops"])
            print(f"| {workload} | " + " | ".join(cells) + f" | {medians['berth']['iops'] / best_peer:.2f} |")
        print("\nFrom the command to a device of the right size, ms: " +
              ", ".join(f"{server} {attach * 1000:.0f}" for server, (_, attach) in servers.items()))


if __name__ == "__main__":
    main()
