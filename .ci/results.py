#!/usr/bin/python3
"""Counts test cases from what Bazel and the tests wrote, and adds them up.

  results.py stage NAME BUILD-EVENTS EXIT-STATUS RESULTS   counts one run of Bazel and appends to the file RESULTS
  results.py check NAME EXIT-STATUS RESULTS                appends one check (a format check, a build)
  results.py total RESULTS                                 prints failures, skips and the last line
"""

import json
import os
import sys
import urllib.parse
import xml.etree.ElementTree


def read_events(path):
    """The build event protocol's messages; a Bazel that was killed leaves the last one torn."""
    events = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                try:
                    events.append(json.loads(line))
                except json.JSONDecodeError:
                    break
    return events


def count_xml(label, path):
    """Yields (outcome, name, reason) of each test case in a JUnit file."""
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        group = case.get("classname") or ""
        name = f"{label} {group}.{case.get('name')}" if group and group != case.get("name") else f"{label}"
        failure = case.find("failure")
        if failure is None:
            failure = case.find("error")
        skipped = case.find("skipped")
        if failure is not None:
            yield "failed", name, ""
        elif skipped is not None or case.get("result") == "skipped":
            reason = "" if skipped is None else (skipped.get("message") or skipped.text or "")
            yield "skipped", name, " ".join(reason.split()) or "no reason given"
        elif case.get("status") == "notrun":
            yield "skipped", name, "disabled in its source"
        else:
            yield "passed", name, ""


def count_target(label, result):
    """The cases of one run of one test target, whose own status decides where its XML disagrees."""
    status = result.get("status", "NO_STATUS")
    ran = []
    for output in result.get("testActionOutput", []):
        if output.get("name") == "test.xml":
            path = urllib.parse.unquote(urllib.parse.urlparse(output.get("uri", "")).path)
            try:
                ran = list(count_xml(label, path))
            except (OSError, xml.etree.ElementTree.ParseError):
                ran = []
    if status in ("PASSED", "FLAKY"):
        return ran or [("passed", label, "")]
    if not any(outcome == "failed" for outcome, _, _ in ran):
        ran.append(("failed", label, status.lower()))
    return ran


def count_stage(stage, events, exit_status):
    results = {}
    broken = {}
    summaries = set()
    for event in events:
        identity = event.get("id", {})
        if "testResult" in identity:
            key = identity["testResult"]
            run = (key["label"], key.get("run", 1), key.get("shard", 0))
            attempt = key.get("attempt", 1)
            if attempt >= results.get(run, (0, None))[0]:
                results[run] = (attempt, event.get("testResult", {}))
        elif "testSummary" in identity:
            summaries.add(identity["testSummary"]["label"])
        elif "targetCompleted" in identity:
            if not event.get("completed", {}).get("success"):
                broken[identity["targetCompleted"]["label"]] = "does not build"
        elif "aborted" in event:
            for kind, about in identity.items():
                name = about.get("label") or " ".join(about.get("pattern", [])) or kind
                if kind in ("configuredLabel", "unconfiguredLabel", "pattern"):
                    broken[name] = " ".join(event["aborted"].get("description", "").split()) or "cannot be loaded"
    tested = {label for label, _, _ in results}
    for label in summaries - tested:
        broken.setdefault(label, "was not run")
    cases = []
    for (label, _, _), (_, result) in sorted(results.items()):
        if label not in broken or result.get("status") != "NO_STATUS":
            cases += count_target(label, result)
    cases += [("failed", label, reason) for label, reason in sorted(broken.items()) if label not in tested]
    if exit_status != 0 and not any(outcome == "failed" for outcome, _, _ in cases):
        cases.append(("failed", "bazel", f"ended with status {exit_status}"))
    if exit_status == 0 and not cases:
        cases.append(("failed", "bazel", "found no tests"))
    return [[stage, *case] for case in cases]


def append(path, cases):
    with open(path, "a", encoding="utf-8") as results:
        for case in cases:
            results.write(json.dumps(case) + "\n")
    print(f"   {summary(cases)}")


def summary(cases):
    return ", ".join(f"{sum(case[1] == outcome for case in cases)} {outcome}" for outcome in ("passed", "failed", "skipped"))


def total(path):
    cases = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as results:
            cases = [json.loads(line) for line in results]
    for outcome in ("skipped", "failed"):
        for stage, found, name, reason in cases:
            if found == outcome:
                print(f"{outcome}: [{stage}] {name}" + (f": {reason}" if reason else ""))
    print(summary(cases))
    return 1 if not cases or any(case[1] == "failed" for case in cases) else 0


def main(arguments):
    if len(arguments) == 5 and arguments[0] == "stage":
        append(arguments[4], count_stage(arguments[1], read_events(arguments[2]), int(arguments[3])))
        return 0
    if len(arguments) == 4 and arguments[0] == "check":
        outcome = "passed" if arguments[2] == "0" else "failed"
        append(arguments[3], [[arguments[1], outcome, arguments[1], ""]])
        return 0
    if len(arguments) == 2 and arguments[0] == "total":
        return total(arguments[1])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
