{{/* A cluster is disarmed before a change arrives, which would replace its pods otherwise, and armed after it. */}}
{{- define "ray-workload.rollout.hook" -}}
{{ ternary "post-install,post-upgrade" "pre-upgrade" .Values.rollout.enabled }}
{{- end -}}

{{/* The upgrade strategy that the cluster is to get, empty where it is to be left alone. Switched off, a cluster that was
     armed before is disarmed. */}}
{{- define "ray-workload.rollout.strategy" -}}
{{- with include "ray-workload.cluster" . -}}
  {{- $live := lookup "ray.io/v1" "RayCluster" $.Release.Namespace . | default dict -}}
  {{- if $.Values.rollout.enabled }}Recreate
  {{- else if eq "Recreate" (dig "spec" "upgradeStrategy" "type" "" $live) }}None
  {{- end -}}
{{- end -}}
{{- end -}}
