#!/usr/bin/env bash
# Installs the browser that the tests of the pages drive, and fonts, without which it
# shows no text. For Debian and Ubuntu, as root, after apt-get update.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core fonts-liberation
