{{/* A port of the head, by the name it has in `head.ports`. Takes (list . NAME DEFAULT). */}}
{{- define "ray-workload.headPort" -}}
{{- $name := index . 1 -}}
{{- $port := index . 2 -}}
{{- range dig "ray-cluster" "head" "ports" list (index . 0).Values.AsMap }}
  {{- if eq .name $name }}{{ $port = .containerPort }}{{ end }}
{{- end -}}
{{ int $port }}
{{- end -}}

{{/* The agent's port of a group: `ray start` is told it, else its default (ray_constants.py). Takes the group's values. */}}
{{- define "ray-workload.agentPort" -}}
{{ dig "rayStartParams" "dashboard-agent-listen-port" 52365 . | int }}
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
