{{/* The Ray version of the image: `rayVersion`, else what the tag starts with. */}}
{{- define "ray-workload.rayVersion" -}}
{{- $image := include "ray-workload.over" (list (include "ray-workload.image" . | fromJson) (include "ray-workload.filled" .Values.head.image | fromJson)) | fromJson -}}
{{ .Values.rayVersion | default (regexFind "^[0-9]+\\.[0-9]+\\.[0-9]+(?:rc[0-9]+|[.]dev[0-9]+)?" (toString $image.tag)) }}
{{- end -}}

{{/* The fields of a RayCluster's spec that the cluster's CRD has, with their own fields, as JSON. Empty if helm
     renders without access to the cluster: `helm install` creates the CRD before it renders. */}}
{{- define "ray-workload.knownFields" -}}
{{- if .Values.rayCluster.checkCRD -}}
  {{- range dig "spec" "versions" list (lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "rayclusters.ray.io" | default dict) -}}
    {{- if eq .name "v1" }}{{ toJson .schema.openAPIV3Schema.properties.spec.properties }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* The fields of the RayCluster's spec that the upstream chart cannot render. As JSON. */}}
{{- define "ray-workload.spec" -}}
{{- $known := (index .Values "ray-cluster").known -}}
{{- $spec := dict -}}
{{- if or .Values.replacePodsOnUpgrade (empty $known) (hasKey $known "upgradeStrategy") -}}
  {{- $_ := set $spec "upgradeStrategy" (dict "type" (ternary "Recreate" "None" .Values.replacePodsOnUpgrade)) -}}
{{- end -}}
{{- if and .Values.auth.enabled (or (empty $known) (hasKey $known "authOptions")) -}}
  {{- /* So that the operator uses the token for its own calls, as for RayJobs. Ray gets it from the variables of the pods:
         older operators do not have this field, and the cluster must never be open. */ -}}
  {{- $_ := set $spec "authOptions" (dict "mode" "token" "secretName" (include "ray-workload.authSecret" .)) -}}
{{- end -}}
{{- if .Values.headRecovery.enabled -}}
  {{- $recovery := .Values.headRecovery -}}
  {{- $options := dict "backend" "rocksdb" "storage" (dict "size" $recovery.size "deletionPolicy" "Retain") -}}
  {{- with $recovery.storageClassName }}{{ $_ := set $options.storage "storageClassName" . }}{{ end -}}
  {{- if $recovery.redisAddress -}}
    {{- $options = dict "redisAddress" $recovery.redisAddress -}}
    {{- with $recovery.redisPassword.secret -}}
      {{- $_ := set $options "redisPassword" (dict "valueFrom" (dict "secretKeyRef" (dict "name" . "key" $recovery.redisPassword.key))) -}}
    {{- end -}}
  {{- end -}}
  {{- $_ := set $spec "gcsFaultToleranceOptions" $options -}}
{{- end -}}
{{- include "ray-workload.over" (list $spec .Values.rayCluster.spec) -}}
{{- end -}}

{{/* The upstream chart's autoscalerOptions. */}}
{{- define "ray-workload.autoscaler" -}}
version: v2
idleTimeoutSeconds: {{ .Values.autoscaling.idleTimeoutSeconds }}
env: {{ include "ray-workload.authEnv" . }}
volumeMounts:
  - name: api-token
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
securityContext:
  {{- include "ray-workload.securityContext" . | nindent 2 }}
resources:
  {{- toYaml .Values.autoscaling.resources | nindent 2 }}
{{- end -}}
