{{/* A port of the head, by the name it has in `head.ports`. Takes (list . NAME DEFAULT). */}}
{{- define "ray-workload.headPort" -}}
{{- $name := index . 1 -}}
{{- $port := index . 2 -}}
{{- range dig "ray-cluster" "head" "ports" list (index . 0).Values.AsMap }}
  {{- if eq .name $name }}{{ $port = .containerPort }}{{ end }}
{{- end -}}
{{ int $port }}
{{- end -}}

{{/* A port that `ray start` is told, or its default (ray_constants.py). `initArgs` is upstream's old name of rayStartParams.
     Takes (list GROUP NAME DEFAULT). */}}
{{- define "ray-workload.startPort" -}}
{{- $group := index . 0 -}}
{{- $given := merge dict ($group.initArgs | default dict) ($group.rayStartParams | default dict) -}}
{{ get $given (index . 1) | default (index . 2) | int }}
{{- end -}}

{{- define "ray-workload.agentPort" -}}
{{ include "ray-workload.startPort" (list . "dashboard-agent-listen-port" 52365) }}
{{- end -}}

{{/* The worker groups that are on, as YAML: name -> its values. */}}
{{- define "ray-workload.groups" -}}
{{- $cluster := index .Values "ray-cluster" -}}
{{- $groups := dict -}}
{{- if not $cluster.worker.disabled }}{{ $_ := set $groups $cluster.worker.groupName $cluster.worker }}{{ end -}}
{{- range $name, $group := $cluster.additionalWorkerGroups -}}
  {{- if not $group.disabled }}{{ $_ := set $groups $name $group }}{{ end -}}
{{- end -}}
{{ toYaml $groups }}
{{- end -}}
