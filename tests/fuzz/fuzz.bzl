"""Fuzzers whose corpus is replayed by every ordinary test run."""

def fuzz_test(name, srcs, corpus, deps = [], size = "small", tags = [], **kwargs):
    """A libFuzzer target: `extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size)`.

    Ordinarily this is a test that feeds every file of the corpus to the target. With --config=fuzz it is the real
    fuzzer, which `tests/fuzz/run.sh TARGET SECONDS` builds and runs.

    Args:
      name: of the test, and of the fuzzer.
      srcs: the target's sources.
      corpus: the corpus' files, usually glob(["corpus/NAME/*"]). It must not be empty.
      deps: what the sources need.
      size: of the replaying test.
      tags: of the replaying test.
      **kwargs: handed on to cc_test.
    """
    if not corpus:
        fail("%s has an empty corpus: it would test nothing" % name)
    native.filegroup(
        name = name + "_corpus",
        testonly = True,
        srcs = corpus,
        visibility = ["//visibility:private"],
    )
    native.cc_test(
        name = name,
        size = size,
        srcs = srcs + select({
            "//tests/fuzz:fuzzing": [],
            "//conditions:default": ["//tests/fuzz:replay_main.cc"],
        }),
        args = ["$(rootpaths :" + name + "_corpus)"],
        data = [":" + name + "_corpus"],
        linkopts = select({
            "//tests/fuzz:fuzzing": ["-fsanitize=fuzzer"],
            "//conditions:default": [],
        }),
        tags = tags + ["fuzz"],
        deps = deps,
        **kwargs
    )
