# An example for machines whose units are declared: NixOS, in configuration.nix: imports = [ ./launch.nix ];
# `launch install` writes into /etc/systemd, which such machines do not let it. One unit runs the whole runtime instead: servers
# are its children, and systemd stops them with it.
{ pkgs, ... }:
let
  fleet = ./launch.yaml; # of `launch init` or your own hand
  launch = "/opt/launch/bin/launch"; # a venv with the wheel; on NixOS itself built with pkgs.python311.pkgs.buildPythonApplication
in
{
  users.users.launch = { isSystemUser = true; group = "launch"; home = "/var/lib/launch"; extraGroups = [ "render" "video" ]; };
  users.groups.launch = { };
  systemd.services.launch = {
    description = "launch: llama.cpp servers behind one port";
    wantedBy = [ "multi-user.target" ];
    after = [ "network.target" "remote-fs.target" ]; # models may lie on a network disk
    path = [ pkgs.llama-cpp pkgs.numactl ];
    environment = { XDG_STATE_HOME = "/var/lib/launch"; HOME = "/var/lib/launch"; };
    serviceConfig = {
      ExecStart = "${launch} up -f ${fleet}";
      ExecReload = "${launch} reload";
      User = "launch";
      StateDirectory = "launch";
      Restart = "on-failure";
      RestartSec = 5;
      TimeoutStopSec = 180; # answers that are being written are finished first
      LimitMEMLOCK = "infinity"; # mlock of weights
      NoNewPrivileges = true;
      ProtectSystem = "strict";
      ProtectHome = "read-only"; # or where the models lie
      PrivateTmp = true;
    };
  };
}
