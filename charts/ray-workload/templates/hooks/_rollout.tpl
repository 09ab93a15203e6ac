{{/* When the hook runs. It enables the rollout after an upgrade, and disables it before one, so that the upgrade does
     not replace the pods. */}}
{{- define "ray-workload.rollout.hook" -}}
{{ ternary "post-install,post-upgrade" "pre-upgrade" .Values.rollout.enabled }}
{{- end -}}

{{/* The upgrade strategy that the hook sets. Empty if the hook has nothing to change. If rollout.enabled is false, but
     the cluster has the strategy Recreate from an earlier upgrade, the hook sets None. */}}
{{- define "ray-workload.rollout.strategy" -}}
{{- with include "ray-workload.cluster" . -}}
  {{- $live := lookup "ray.io/v1" "RayCluster" $.Release.Namespace . | default dict -}}
  {{- if $.Values.rollout.enabled }}Recreate
  {{- else if eq "Recreate" (dig "spec" "upgradeStrategy" "type" "" $live) }}None
  {{- end -}}
{{- end -}}
{{- end -}}
