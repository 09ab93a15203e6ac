{{/* Helm unsets the strategy before it applies a change, which would otherwise replace the pods, and sets it afterwards. */}}
{{- define "ray-workload.rollout.hook" -}}
{{ ternary "post-install,post-upgrade" "pre-upgrade" .Values.rollout.enabled }}
{{- end -}}

{{/* The upgrade strategy to set on the cluster. Empty if the hook has nothing to change. If rollout.enabled is false, but
     the cluster has the strategy Recreate from an earlier upgrade, the hook sets None. */}}
{{- define "ray-workload.rollout.strategy" -}}
{{- with include "ray-workload.cluster" . -}}
  {{- $live := lookup "ray.io/v1" "RayCluster" $.Release.Namespace . | default dict -}}
  {{- if $.Values.rollout.enabled }}Recreate
  {{- else if eq "Recreate" (dig "spec" "upgradeStrategy" "type" "" $live) }}None
  {{- end -}}
{{- end -}}
{{- end -}}
