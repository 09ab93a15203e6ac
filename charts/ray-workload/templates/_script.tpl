{{/* A pod that runs a script of `files/` in the Ray image, preferably on a node where the head can run.
     Takes (dict "context" $ "script" FILE "args" LIST "env" LIST). */}}
{{- define "ray-workload.scriptPod" -}}
{{- $ray := index .context.Values "ray-cluster" -}}
{{- $head := $ray.head -}}
restartPolicy: Never
{{- with $ray.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $head.nodeSelector }}
# Preferred, not required: an uninstall must not wait for such a node.
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        preference:
          matchExpressions:
            {{- range $key, $value := . }}
            - {key: {{ $key }}, operator: In, values: [{{ $value | quote }}]}
            {{- end }}
{{- end }}
{{- with $head.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $head.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: script
    image: {{ $head.image.repository }}:{{ $head.image.tag }}
    imagePullPolicy: {{ $head.pullPolicy }}
    command: [python, -c, {{ .context.Files.Get .script | toJson }}]
    args: {{ toJson .args }}
    env:
      - name: NAMESPACE
        value: {{ .context.Release.Namespace }}
      - name: CLUSTER
        value: {{ include "ray-workload.cluster" .context }}
      {{- with .env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $head.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      requests: {cpu: 100m, memory: 64Mi}
      limits: {cpu: "1", memory: 256Mi}
{{- end -}}
