{{/* The number of the port with this name in `head.ports`, or the default. Takes (list . NAME DEFAULT). */}}
{{- define "ray-workload.headPort" -}}
{{- $name := index . 1 -}}
{{- $port := index . 2 -}}
{{- range dig "ray-cluster" "head" "ports" list (index . 0).Values.AsMap }}
  {{- if eq .name $name }}{{ $port = .containerPort }}{{ end }}
{{- end -}}
{{ int $port }}
{{- end -}}

{{/* A port number from the parameters of `ray start`, or the default (see ray_constants.py). The upstream chart also
     reads the old name of rayStartParams, `initArgs`. Takes (list GROUP NAME DEFAULT). */}}
{{- define "ray-workload.startPort" -}}
{{- $group := index . 0 -}}
{{- $given := merge dict ($group.initArgs | default dict) ($group.rayStartParams | default dict) -}}
{{ get $given (index . 1) | default (index . 2) | int }}
{{- end -}}

{{- define "ray-workload.agentPort" -}}
{{ include "ray-workload.startPort" (list . "dashboard-agent-listen-port" 52365) }}
{{- end -}}

{{/* The enabled worker groups as YAML: a map from the name to the values. */}}
{{- define "ray-workload.groups" -}}
{{- $cluster := index .Values "ray-cluster" -}}
{{- $groups := dict -}}
{{- if not $cluster.worker.disabled }}{{ $_ := set $groups $cluster.worker.groupName $cluster.worker }}{{ end -}}
{{- range $name, $group := $cluster.additionalWorkerGroups -}}
  {{- if not $group.disabled }}{{ $_ := set $groups $name $group }}{{ end -}}
{{- end -}}
{{ toYaml $groups }}
{{- end -}}
