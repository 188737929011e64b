"""Tests that run inside a virtual machine with Debian's own kernel and a real /dev/nbd.

The machine sees the host's root file system read-only, and runs the test binary as root with fresh file systems on
/tmp, /run and /dev/shm. The module nbd is loaded. A test also fails when the kernel complained (BUG, WARNING, Oops, hung task, I/O
error) and `expected_kernel_messages` did not announce it. Where QEMU or the kernel package is missing it fails and says
what to install.
"""

# Labels of this repository, whichever workspace calls the macros.
_RUN = Label("//tests/kernel/vm:run.sh")
_FILES = Label("//tests/kernel/vm")

def vm_test(
        name,
        test,
        args = [],
        data = [],
        kernel = "6.12",
        modules = ["nbd"],
        memory_mb = 1280,
        expected_kernel_messages = [],
        tags = [],
        size = "medium",
        timeout = "long",
        **kwargs):
    """Runs an executable inside the machine.

    Args:
      name: of the test.
      test: label of the executable, which fails by its exit status.
      args: its arguments.
      data: files that it needs at run time.
      kernel: the series of Debian's cloud kernel, "6.12" or "6.1".
      modules: what is loaded before it starts; [] leaves nbd to the code under test.
      memory_mb: of the machine; only what is touched is taken from the host.
      expected_kernel_messages: extended regular expressions of kernel complaints that the test provokes.
      tags: beside those that keep it out of Bazel's sandbox.
      size: of the test.
      timeout: of the test; long gives it fifteen minutes, as the machine is emulated where the host has no KVM for it.
      **kwargs: handed on to the test: shard_count; flaky is not among them.
    """
    options = ["--kernel=" + kernel, "'--modules=" + " ".join(modules) + "'", "--memory=%d" % memory_mb]
    options += ["'--expect-kernel-message=" + message + "'" for message in expected_kernel_messages]
    native.sh_test(
        name = name,
        size = size,
        timeout = timeout,
        srcs = [_RUN],
        args = options + ["--", "$(rootpath " + test + ")"] + args,
        data = data + [test, _FILES],
        # A machine has two CPUs and keeps about one of the host's busy, which is what Bazel counts for a test.
        tags = tags + ["no-sandbox", "vm"],
        **kwargs
    )

def vm_cc_test(
        name,
        srcs,
        deps = [],
        data = [],
        copts = [],
        defines = [],
        linkopts = [],
        visibility = None,
        **kwargs):
    """A googletest (or any main) in C++ that runs inside the machine.

    Args:
      name: of the test; its binary, which can also be run alone, is name + "_binary".
      srcs: as in cc_test.
      deps: as in cc_test; name @com_google_googletest//:gtest_main here where main should be googletest's.
      data: as in cc_test.
      copts: as in cc_test.
      defines: as in cc_test.
      linkopts: as in cc_test.
      visibility: of the test.
      **kwargs: those of vm_test.
    """
    native.cc_binary(
        name = name + "_binary",
        testonly = True,
        srcs = srcs,
        copts = copts,
        data = data,
        defines = defines,
        linkopts = linkopts,
        tags = ["manual"],
        visibility = ["//visibility:private"],
        deps = deps,
    )
    vm_test(
        name = name,
        test = ":" + name + "_binary",
        data = data,
        visibility = visibility,
        **kwargs
    )
