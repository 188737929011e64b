"""The external repositories: Bazel's own rules, and the system libraries under their usual labels."""

load("//third_party:absl.bzl", "ABSL_TARGETS")
load("//third_party:system_repository.bzl", "system_repository")

def bazel_rules_repositories(berth = "."):
    """What Bazel would otherwise download: each is on the disk already.

    Args:
      berth: from another workspace, the path of this one.
    """
    native.local_repository(name = "bazel_skylib", path = "/usr/share/bazel/tools/skylib")
    native.local_repository(name = "platforms", path = "/usr/share/bazel/platforms")
    native.local_repository(name = "rules_java", path = "/usr/share/bazel/rules/java")
    native.local_repository(name = "rules_proto", path = "/usr/share/bazel/rules/proto")
    native.local_repository(name = "remote_coverage_tools", path = berth + "/third_party/remote_coverage_tools")
    native.local_repository(name = "rules_cc", path = berth + "/third_party/rules_cc")

def system_library_repositories(berth = "."):
    """Debian's libraries under the labels that their source repositories use.

    Args:
      berth: from another workspace, the path of this one.
    """
    system_repository(name = "com_google_absl", targets = ABSL_TARGETS)
    system_repository(name = "com_google_googletest", targets = {
        ":gtest": ["-lgmock", "-lgtest", "-pthread"],
        ":gtest_main": ["-lgmock_main", "-lgmock", "-lgtest", "-pthread"],
    })
    system_repository(name = "com_github_axboe_liburing", targets = {":uring": ["-luring"]})
    system_repository(name = "com_github_thom311_libnl", include = "/usr/include/libnl3", targets = {
        ":nl": ["-lnl-3"],
        ":nl_genl": ["-lnl-genl-3", "-lnl-3"],
    })
    system_repository(name = "com_github_cliutils_cli11", targets = {":cli11": []})
    system_repository(name = "com_github_nlohmann_json", targets = {":json": []})
    system_repository(name = "com_github_jupp0r_prometheus_cpp", targets = {
        "core:core": ["-lprometheus-cpp-core"],
        "pull:pull": ["-lprometheus-cpp-pull", "-lprometheus-cpp-core"],
    })
    system_repository(name = "openssl", targets = {
        ":crypto": ["-lcrypto"],
        ":ssl": ["-lssl", "-lcrypto"],
    })
    system_repository(name = "zlib", targets = {":zlib": ["-lz"]})
    system_repository(name = "com_github_facebook_zstd", targets = {":zstd": ["-lzstd"]})
    system_repository(name = "systemd", targets = {":systemd": ["-lsystemd"]})
    native.local_repository(name = "com_google_protobuf", path = berth + "/third_party/protobuf")
    native.local_repository(name = "com_github_grpc_grpc", path = berth + "/third_party/grpc")
