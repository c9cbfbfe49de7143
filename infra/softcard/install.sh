#!/usr/bin/env bash
# Installs what the tests hold the software cards against: a real pcscd with a
# virtual reader, and the tools of others. For Debian and Ubuntu, as root.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
	pcscd pkg-config libpcsclite-dev pcsc-tools opensc yubico-piv-tool vsmartcard-vpcd iproute2 \
	gcc libpam0g-dev pamtester
